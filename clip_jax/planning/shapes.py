"""The model of a config where its tokenizer's file need not be there."""

import dataclasses

from clip_jax.errors import UsageError
from clip_jax.models import presets
from clip_jax.models.config import CLIPConfig
from clip_jax.training.config import Config, tokenizer_path, with_defaults
from clip_jax.training.run import make_tokenizer, shape_model


def planned_model(config: Config) -> CLIPConfig:
  """What `train` would make of `config.model`, without data.

  A tokenizer whose file is not there yet, or which is that of the model to
  start from, is taken to have the vocabulary that the config or its preset
  says: only the number of tokens matters here.

  Raises:
    UsageError: a field is impossible, or nothing says how many tokens there
      are.
  """
  config = with_defaults(config)
  path = tokenizer_path(config.tokenizer)
  if config.tokenizer == 'clip' or (path and path.exists()):
    tokenizer = make_tokenizer(config, ())
    return shape_model(
      config, tokenizer.vocab_size, tokenizer.context_length, tokenizer.eos_id
    )
  text, name = config.model.text, config.model.preset
  known = dataclasses.asdict(presets.find(name).config.text) if name else {}
  vocab_size = (
    text.vocab_size
    or config.tokenizer_training.vocab_size
    or known.get('vocab_size')
  )
  if not vocab_size:
    raise UsageError(
      f'tokenizer={config.tokenizer!r} is not there: say '
      'model.text.vocab_size, the number of its tokens, to plan without it.'
    )
  length = text.context_length or known.get('context_length')
  end = vocab_size - 1 if text.pooling == 'highest' else 1
  return shape_model(config, vocab_size, length, known.get('end_token', end))
