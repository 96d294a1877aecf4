# pyright: reportMissingImports=false
"""Writes the goldens of this folder; needs transformers, torch, torchvision."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file
from transformers import Siglip2Config, Siglip2Model
from transformers.models.siglip2.image_processing_pil_siglip2 import (
  Siglip2ImageProcessorPil,
)
from transformers.models.siglip2.image_processing_siglip2 import (
  get_image_size_for_max_num_patches,
)

FOLDER = Path(__file__).parent
SIZES = ((37, 43), (16, 16), (9, 80), (61, 20), (5, 7))
CORNERS = ((224, 224), (1, 1), (1, 10000), (10000, 1), (480, 640), (3000, 17),
           (16, 16), (333, 500))  # fmt: skip
LENGTHS = ((16, 256), (16, 128), (14, 729), (16, 1024), (4, 20))


def make_model() -> Siglip2Model:
  """A model whose every array is random."""
  torch.manual_seed(0)
  vision = dict(
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=3,
    patch_size=4,
    num_patches=16,
  )
  text = dict(
    hidden_size=20,
    intermediate_size=30,
    num_hidden_layers=2,
    num_attention_heads=2,
    vocab_size=50,
    max_position_embeddings=8,
    projection_size=24,
    bos_token_id=2,
    eos_token_id=1,
    pad_token_id=0,
  )
  config = Siglip2Config(vision_config=vision, text_config=text)
  model = Siglip2Model(config).eval()
  for parameter in model.parameters():
    if parameter.ndim:
      parameter.data += 0.1 * torch.randn_like(parameter)
  model.logit_scale.data.fill_(2.0)
  model.logit_bias.data.fill_(-3.0)
  return model


def make_images(rng: np.random.Generator) -> list[np.ndarray]:
  """Noise that is smooth enough for resampling to keep something of it."""
  noise = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
  images = []
  for pixels, (height, width) in zip(noise, SIZES, strict=True):
    small = Image.fromarray(pixels).resize((width // 2 + 1, height // 2 + 1))
    images.append(np.asarray(small.resize((width, height))))
  return images


@torch.no_grad()
def main() -> None:
  """Writes all files but the README."""
  model = make_model()
  model.save_pretrained(FOLDER)
  processor = Siglip2ImageProcessorPil(
    patch_size=4, max_num_patches=20, do_convert_rgb=True
  )
  processor.save_pretrained(FOLDER)
  rng = np.random.default_rng(0)
  images = make_images(rng)
  inputs = processor([Image.fromarray(x) for x in images], return_tensors='pt')
  ids = torch.tensor(rng.integers(3, 50, (3, 8)))
  both = model(input_ids=ids, **inputs)
  vision = model.vision_model(**inputs)
  arrays = {name: x.numpy() for name, x in inputs.items()}
  arrays['pixel_values'] = arrays['pixel_values'].astype(np.float32)
  arrays |= {f'raw_image_{i}': x for i, x in enumerate(images)}
  save_file({**arrays, 'input_ids': ids.numpy()}, FOLDER / 'inputs.safetensors')
  names = ('image_embeds', 'text_embeds', 'logits_per_image')
  outputs = {name: getattr(both, name) for name in names}
  outputs |= {
    name: getattr(vision, name)
    for name in ('pooler_output', 'last_hidden_state')
  }
  save_file(
    {name: x.numpy().copy() for name, x in outputs.items()},
    FOLDER / 'outputs.safetensors',
  )
  random = np.exp(np.random.default_rng(1).uniform(0, 8.5, (60, 2)))
  sizes = [*CORNERS, *map(tuple, (random.astype(int) + 1).tolist())]
  rows = []
  for height, width in sizes:
    for patch, most in LENGTHS:
      new = get_image_size_for_max_num_patches(height, width, patch, most)
      rows.append([height, width, patch, most, *(x // patch for x in new)])
  (FOLDER / 'grids.json').write_text(json.dumps(rows, separators=(',', ':')))


if __name__ == '__main__':
  main()
