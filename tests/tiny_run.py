"""A workdir as training leaves it, with a tiny untrained model."""

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax import tokenizers
from clip_jax.checkpoints.manager import Checkpoints
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.inference.model import Model
from clip_jax.models.config import DecoderConfig
from clip_jax.models.description import Description
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.tokenizers import sentence_piece
from clip_jax.training.state import TrainState
from tests.tiny import TINY

CAPTIONS = [
  f'{size} {colour} {thing}'
  for size in ('big', 'small')
  for colour in ('red', 'green', 'blue')
  for thing in ('square', 'circle', 'cat face')
]


@functools.cache
def tiny_description(decoder: DecoderConfig | None = None) -> Description:
  """A 16-pixel model that reads sixteen tokens of its own vocabulary."""
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / 'pieces.model'
    sentence_piece.train(CAPTIONS, 25, path)
    tokenizer = tokenizers.load(f'sentencepiece:{path}', context_length=16)
  text = dataclasses.replace(
    TINY.text,
    vocab_size=tokenizer.vocab_size,
    end_token=tokenizer.eos_id,
    context_length=16,
  )
  return Description(
    model=dataclasses.replace(TINY, text=text, decoder=decoder),
    tokenizer=tokenizer.describe(),
    preprocessing=Preprocessing(image_size=16),
  )


@functools.cache
def tiny_params(decoder: DecoderConfig | None = None) -> Any:
  """Initial parameters with noise, so that different inputs differ."""
  init = jax.jit(DualEncoder(tiny_description(decoder).model).init)
  images, tokens = jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 8), jnp.int32)
  params = init(jax.random.key(0), images, tokens)['params']
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: np.asarray(x + 0.1 * rng.normal(size=x.shape), np.float32),
    params,
  )


def tiny_model(**options: Any) -> Model:
  """The model of these two, as a run would hold it."""
  return Model(tiny_description(), {'params': tiny_params()}, **options)


def write_run(
  workdir: Path,
  steps: tuple[int, ...] = (7,),
  decoder: DecoderConfig | None = None,
) -> Path:
  """Checkpoints of that model in a run's workdir, which is returned."""
  checkpoints = Checkpoints(workdir, keep=len(steps))
  for step in steps:
    state = TrainState(
      step=jnp.int32(step),
      params=jax.tree.map(jnp.asarray, tiny_params(decoder)),
      opt_state=(jnp.int32(step),),
    )
    checkpoints.save(state, tiny_description(decoder), seed=0)
  checkpoints.close()
  return workdir
