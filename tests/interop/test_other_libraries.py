"""Converted models in the other libraries' own code: same ids, same features,
no warning. `bash launch/test.sh peers` runs them; elsewhere they are skipped.
"""

import json
import logging
import warnings

import numpy as np
import pytest
from PIL import Image

from clip_jax.inference.loading import load, read_model
from clip_jax.interop.converting import convert
from tests.golden_models import GOLDENS, OPEN_CLIP, load_golden
from tests.tiny_run import CAPTIONS, write_run

torch = pytest.importorskip('torch')
open_clip = pytest.importorskip('open_clip')
transformers = pytest.importorskip('transformers')

pytestmark = pytest.mark.peers

RNG = np.random.default_rng(0)
IMAGES = [
  Image.fromarray(RNG.integers(0, 256, (20, 17 + i, 3), dtype=np.uint8))
  for i in range(3)
]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return write_run(tmp_path_factory.mktemp('run'))


@pytest.fixture
def silent(caplog):
  """Fails the test where the library warned, in either way."""
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    # Of the libraries' own dependencies, and of no concern here.
    warnings.filterwarnings('ignore', category=DeprecationWarning)
    warnings.filterwarnings('ignore', category=ResourceWarning)
    yield
  said = [r for r in caplog.records if r.levelno >= logging.WARNING]
  assert not said, said


def converted(reference, target, folder):
  loaded = read_model(reference)
  convert(loaded.description, loaded.variables, target, folder)
  return str(folder)


def difference(ours, theirs):
  return np.abs(np.asarray(ours) - theirs.detach().numpy()).max()


def test_a_trained_model_in_open_clip(run, tmp_path, silent):
  folder = converted(run, 'open_clip', tmp_path / 'model')
  model, _, preprocess = open_clip.create_model_and_transforms(
    f'local-dir:{folder}'
  )
  model.eval()
  tokens = open_clip.get_tokenizer(f'local-dir:{folder}')(CAPTIONS)
  ours = load(run)
  np.testing.assert_array_equal(tokens.numpy(), ours.tokenizer(CAPTIONS))
  pixels = torch.stack([preprocess(image) for image in IMAGES])
  images = model.encode_image(pixels, normalize=True)
  texts = model.encode_text(tokens, normalize=True)
  assert difference(ours.encode_image(IMAGES), images) < 2e-6
  assert difference(ours.encode_text(CAPTIONS), texts) < 2e-6
  scale = model.logit_scale.exp().item()
  assert scale == pytest.approx(ours.logit_scale, rel=1e-6)


def test_a_trained_model_in_transformers(run, tmp_path, silent):
  folder = converted(run, 'hf', tmp_path / 'model')
  model = transformers.AutoModel.from_pretrained(folder).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  processor = transformers.AutoImageProcessor.from_pretrained(
    folder, backend='pil'
  )
  inputs = tokenizer(
    CAPTIONS, padding='max_length', truncation=True, return_tensors='pt'
  )
  ours = load(run)
  np.testing.assert_array_equal(
    inputs['input_ids'].numpy(), ours.tokenizer(CAPTIONS)
  )
  outputs = model(
    **inputs, pixel_values=processor(IMAGES, return_tensors='pt').pixel_values
  )
  assert difference(ours.encode_image(IMAGES), outputs.image_embeds) < 2e-6
  assert difference(ours.encode_text(CAPTIONS), outputs.text_embeds) < 2e-6


@pytest.mark.parametrize('name', OPEN_CLIP)
def test_what_open_clip_wrote_goes_back_there(name, tmp_path):
  folder = converted(GOLDENS / name, 'open_clip', tmp_path / 'model')
  model = open_clip.create_model(f'local-dir:{folder}').eval()
  golden = load_golden(name)
  images = torch.tensor(np.asarray(golden.images)).permute(0, 3, 1, 2)
  tokens = torch.tensor(np.asarray(golden.tokens)).long()
  golden.check(
    'image_features_normalized',
    model.encode_image(images, normalize=True).detach().numpy(),
  )
  golden.check(
    'text_features_normalized',
    model.encode_text(tokens, normalize=True).detach().numpy(),
  )


@pytest.mark.parametrize('name', ['hf_clip', 'hf_siglip'])
def test_what_transformers_wrote_goes_back_there(name, tmp_path):
  folder = converted(GOLDENS / name, 'hf', tmp_path / 'model')
  ours = json.loads((tmp_path / 'model' / 'config.json').read_text())
  assert ours['model_type'] == name.removeprefix('hf_')
  model = transformers.AutoModel.from_pretrained(folder).eval()
  golden = load_golden(name)
  outputs = model(
    pixel_values=torch.tensor(np.asarray(golden.images)).permute(0, 3, 1, 2),
    input_ids=torch.tensor(np.asarray(golden.tokens)).long(),
  )
  golden.check('image_embeds', outputs.image_embeds.detach().numpy())
  golden.check('text_embeds', outputs.text_embeds.detach().numpy())
  golden.check('logits_per_image', outputs.logits_per_image.detach().numpy())
