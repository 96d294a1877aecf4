"""Models of some 300 MB, where memory counts, in every form that is loaded.

A third of a CLIP's numbers are its table of tokens, and a layer's matrices lie
stacked in one array: reading a whole array at once would already show.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.checkpoints.manager import Checkpoints
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.inference.export import export
from clip_jax.inference.model import Model
from clip_jax.interop import big_vision, layouts, openai
from clip_jax.interop.converting import convert
from clip_jax.interop.npz_file import write_npz
from clip_jax.models.config import (
  CLIPConfig,
  TextTransformerConfig,
  VisionTransformerConfig,
)
from clip_jax.models.counting import abstract_variables
from clip_jax.models.description import Description
from clip_jax.training.state import TrainState
from tests.interop.torch_archives import write_state_dict

CLIP = CLIPConfig(
  embed_dim=512,
  image=VisionTransformerConfig(
    image_size=64, patch_size=32, width=1024, depth=3, heads=16
  ),
  text=TextTransformerConfig(
    vocab_size=49_408,
    context_length=77,
    end_token=49_407,
    width=512,
    depth=3,
    heads=8,
  ),
)
SIGLIP = CLIPConfig(
  embed_dim=1024,
  image=VisionTransformerConfig(
    image_size=64,
    patch_size=16,
    width=1024,
    depth=2,
    heads=16,
    activation='gelu_tanh',
    norm_eps=1e-6,
    pooling='attention',
    class_token=False,
    patch_bias=True,
    pre_norm=False,
    projection='none',
  ),
  text=TextTransformerConfig(
    vocab_size=20_000,
    context_length=64,
    end_token=1,
    width=1024,
    depth=1,
    heads=16,
    activation='gelu_tanh',
    norm_eps=1e-6,
    causal=False,
    pooling='last',
    projection='affine',
  ),
  initial_logit_scale=10.0,
  initial_logit_bias=-10.0,
)


def _hugging_face(folder: Path) -> Path:
  convert(_description(CLIP), _variables(CLIP), 'hf', folder / 'hf')
  return folder / 'hf'


def _openai(folder: Path) -> Path:
  """A state dict in float16, half as large as what is made of it."""
  table = openai.table(CLIP, openai.Variant())
  arrays = layouts.write(_variables(CLIP, np.float16), table, CLIP)
  scalars = {
    'input_resolution': np.asarray(CLIP.image.image_size),
    'context_length': np.asarray(CLIP.text.context_length),
    'vocab_size': np.asarray(CLIP.text.vocab_size),
  }
  return write_state_dict(folder / 'clip.pt', arrays | scalars)


def _big_vision(folder: Path) -> Path:
  table = big_vision.table(SIGLIP, frozenset({'img'}))
  path = folder / 'siglip.npz'
  write_npz(path, layouts.write(_variables(SIGLIP), table, SIGLIP))
  return path


def _run(folder: Path) -> Path:
  params = jax.tree.map(jnp.asarray, _variables(CLIP)['params'])
  state = TrainState(
    step=jnp.int32(1), params=params, opt_state={'count': jnp.int32(1)}
  )
  checkpoints = Checkpoints(folder / 'run', keep=1)
  checkpoints.save(state, _description(CLIP), seed=0)
  checkpoints.close()
  return folder / 'run'


def _exported(folder: Path) -> Path:
  export(Model(_description(CLIP), _variables(CLIP)), folder / 'exported')
  return folder / 'exported'


# By name: writes one into a folder and returns what `clip_jax.load` takes.
KINDS: dict[str, Callable[[Path], Path]] = {
  'hugging_face': _hugging_face,
  'openai': _openai,
  'big_vision': _big_vision,
  'run': _run,
  'exported': _exported,
}


def _variables(config: CLIPConfig, dtype: Any = np.float32) -> dict[str, Any]:
  """Numbers that no file system or memory stores as less than they are."""
  rng = np.random.default_rng(0)

  def numbers(leaf):
    return (rng.random(leaf.shape, np.float32) / 8).astype(dtype)

  return jax.tree.map(numbers, abstract_variables(config))


def _description(config: CLIPConfig) -> Description:
  return Description(config, None, Preprocessing(config.image.image_size))
