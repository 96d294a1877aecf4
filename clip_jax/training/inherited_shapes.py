"""The shapes of a run that starts from a trained model.

They are the model's. Only the sizes of images and texts are free, since
position embeddings can be resized, and with a new vocabulary what depends on
that.
"""

from collections.abc import Collection, Mapping
from typing import Any

from clip_jax.errors import UsageError, first_few
from clip_jax.models import presets
from clip_jax.models.config import CLIPConfig
from clip_jax.training.config import Config, dotted

# Fields that may differ from those of the initial weights: the sizes that
# position embeddings depend on, the vocabulary, and the initial temperature.
_FREE = (
  'image.image_size',
  'text.context_length',
  'text.vocab_size',
  'text.end_token',
  'initial_logit_scale',
  'initial_logit_bias',
)


def inherit_shapes(
  config: Config,
  model: CLIPConfig,
  name: str,
  *,
  stated: Collection[str],
  keeps_vocabulary: bool,
) -> list[str]:
  """Sets `config.model` to the shapes of a model, except for free sizes.

  Args:
    config: changed in place.
    model: the one that the run starts from.
    name: what errors call it.
    stated: dotted names of the fields that the command line gives.
    keeps_vocabulary: whether the run keeps the model's vocabulary.
  Returns:
    Notes for the user about what differs.
  Raises:
    UsageError: the command line gives other shapes.
  """
  shapes, requested = dotted(model.to_dict()), _requested_shapes(config)
  other = _contradictions(
    config, shapes, requested, name, stated, keeps_vocabulary
  )
  sizes = _free_sizes(config, shapes, requested, stated, fits=not other)
  pooling = model.text.pooling
  if config.initialize_new_vocabulary:
    pooling = requested.get('text.pooling') or pooling
    # A new vocabulary's end need not be its highest id.
    pooling = 'end' if pooling == 'highest' else pooling
  vocab_size = None
  if keeps_vocabulary:
    vocab_size = model.text.vocab_size
  elif 'model.text.vocab_size' in stated:
    vocab_size = config.model.text.vocab_size
  notes = []
  if other:
    few = first_few([f'{name}={requested[name]}' for name in other])
    notes.append(
      f'the recipe is for a model of other shapes ({few}), which give way to '
      "the weights'."
    )
  shapes.update(sizes)
  shapes.update({'text.pooling': pooling, 'text.vocab_size': vocab_size})
  _set_model(config, shapes)
  return notes + _describe_sizes(config, model, sizes)


def _contradictions(
  config: Config,
  shapes: Mapping[str, Any],
  requested: Mapping[str, Any],
  model: str,
  stated: Collection[str],
  keeps_vocabulary: bool,
) -> list[str]:
  """Returns the fields for which the recipe requests another shape.

  Raises:
    UsageError: the command line requests it.
  """
  new_vocabulary = config.initialize_new_vocabulary
  other = []
  for name in sorted(requested):
    free = name in _FREE or (new_vocabulary and name == 'text.pooling')
    if name == 'text.vocab_size' and keeps_vocabulary:
      free = f'model.{name}' not in stated
    if free or shapes.get(name) == requested[name]:
      continue
    key = f'model.{name}'
    by_preset = _field(config.model, name) is None
    source = 'model.preset' if by_preset else key
    if source in stated:
      preset = f' (model.preset={config.model.preset})'
      raise UsageError(
        f'{model} is another model: its {name} is '
        f'{shapes.get(name, "not there")}, and the command line says '
        f'{key}={requested[name]}{preset if by_preset else ""}: leave that out.'
      )
    other.append(name)
  return other


def _free_sizes(
  config: Config,
  shapes: Mapping[str, Any],
  requested: Mapping[str, Any],
  stated: Collection[str],
  *,
  fits: bool,
) -> dict[str, int]:
  """Returns the image size and the context length of the run.

  They are the command line's, or those of a recipe for such a model, or the
  model's own.
  """
  sizes = {}
  for name, keys in (
    ('image.image_size', ('data.image_size', 'model.image.image_size')),
    ('text.context_length', ('model.text.context_length',)),
  ):
    values = {key: _field(config, key) for key in keys}
    values = {key: v for key, v in values.items() if v is not None}
    given = {k: v for k, v in values.items() if k in stated}
    if not given and fits:
      given = values
    if len(set(given.values())) > 1:
      (one, size), (other, another) = given.items()
      raise UsageError(
        f'{one}={size} and {other}={another} contradict each other: leave '
        'one of them out.'
      )
    default = requested.get(name, shapes[name]) if fits else shapes[name]
    sizes[name] = next(iter(given.values()), default)
  return sizes


def _describe_sizes(
  config: Config, model: CLIPConfig, sizes: Mapping[str, int]
) -> list[str]:
  """Describes sizes that differ from the model's, and the resized positions."""
  lines = []
  size, length = sizes['image.image_size'], sizes['text.context_length']
  old_size, old_length = model.image.image_size, model.text.context_length
  if size != old_size:
    lines.append(
      f'images of {size} pixels, where the model had {old_size}: its image '
      'positions are interpolated.'
    )
  if length == old_length:
    return lines
  if config.initialize_text_positions == 'interpolate':
    how = 'its text positions are interpolated, so that all of them move'
  elif length > old_length:
    how = (
      f'its {old_length} text positions are kept, and {length - old_length} '
      'new ones, copies of the last, appended'
    )
  else:
    how = f'{length} of its text positions are kept'
  lines.append(
    f'texts of {length} tokens, where the model had {old_length}: {how}.'
  )
  return lines


def _requested_shapes(config: Config) -> dict[str, Any]:
  """Returns the model's fields that a config gives, itself or by its preset."""
  fields = config.model.to_dict()
  for name in (
    *('preset', 'dtype', 'remat', 'text_remat', 'patch_dropout'),
    *('decoder', 'lora'),
  ):
    del fields[name]
  given = {k: v for k, v in dotted(fields).items() if v is not None}
  if not config.model.preset:
    return given
  return {**dotted(presets.find(config.model.preset).config.to_dict()), **given}


def _field(config: Config, name: str) -> Any:
  for key in name.split('.'):
    config = config.get(key, None)
  return config


def _set_model(config: Config, fields: Mapping[str, Any]) -> None:
  """Sets `config.model` to these fields; other fields become None."""
  model = config.model
  model.preset = ''
  model.embed_dim = fields['embed_dim']
  for tower in ('image', 'text'):
    for name in model[tower]:
      model[tower][name] = fields.get(f'{tower}.{name}')
  config.data.image_size = fields['image.image_size']
