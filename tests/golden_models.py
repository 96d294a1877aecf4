"""Golden models: tiny weights of the established libraries, and what those
compute with them, at the tolerances that came with them.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from clip_jax.interop.published_model import read_published
from clip_jax.models.config import CLIPConfig
from clip_jax.models.dual_encoder import DualEncoder

GOLDENS = Path(__file__).parent / 'goldens'
OPEN_CLIP = (
  'open_clip_vit',
  'open_clip_vit_gelu',
  'open_clip_vit_gelu/clipa',
  'open_clip_resnet',
)
HUGGING_FACE = ('hf_clip', 'hf_siglip')
_FILES = json.loads((GOLDENS / 'manifest.json').read_text())['files']


@dataclasses.dataclass(frozen=True)
class Golden:
  """One golden model; tensors as its README names them."""

  name: str
  config: CLIPConfig
  variables: Any
  images: jax.Array  # float32 [B, S, S, 3], normalised
  tokens: jax.Array  # int32 [B, T]
  outputs: dict[str, np.ndarray]

  def check(self, name: str, actual: Any, part: Any = ()) -> None:
    """Compares with the golden of that name, at its own tolerance.

    Args:
      name: of an output.
      actual: ours.
      part: of the golden, where ours has not all of it.
    """
    np.testing.assert_allclose(
      np.asarray(actual),
      self.outputs[name][part],
      rtol=0,
      atol=tolerance(self.name, name),
      err_msg=name,
    )

  def apply(self, *args: Any, method: str = '__call__') -> Any:
    """The module on the golden weights, in one program."""
    module = DualEncoder(self.config)
    arrays = [x for x in args if isinstance(x, jax.Array)]
    others = args[len(arrays) :]  # a layer's number

    @jax.jit
    def run(variables, *arrays):
      return module.apply(variables, *arrays, *others, method=method)

    return run(self.variables, *arrays)


def tolerance(folder: str, name: str) -> float:
  """The absolute tolerance that came with an output."""
  return _FILES[f'{folder}/outputs.safetensors']['tensors'][name]['atol']


@functools.cache
def load_golden(name: str) -> Golden:
  """Reads the golden model of a folder."""
  folder = GOLDENS / name
  foreign = read_published(folder)
  inputs = load_file(folder / 'inputs.safetensors')
  images = inputs.get('images', inputs.get('pixel_values'))
  tokens = inputs.get('tokens', inputs.get('input_ids'))
  return Golden(
    name=name,
    config=foreign.description.model,
    variables=foreign.variables,
    images=jnp.asarray(images.transpose(0, 2, 3, 1)),
    tokens=jnp.asarray(tokens.astype(np.int32)),
    outputs=load_file(folder / 'outputs.safetensors'),
  )
