"""Which shapes a run has that starts from a trained model: the model's.

Free are the sizes of images and texts, for which positions are made, and with a
new vocabulary what depends on that.
"""

from collections.abc import Collection, Mapping
from typing import Any

from clip_jax.errors import UsageError, first_few
from clip_jax.models import presets
from clip_jax.models.config import CLIPConfig
from clip_jax.training.config import Config, dotted

# Fields of a model that may differ from those of its first weights: sizes for
# which positions are made, the vocabulary, and where the temperature starts.
_OPEN = (
  'image.image_size',
  'text.context_length',
  'text.vocab_size',
  'text.end_token',
  'initial_logit_scale',
  'initial_logit_bias',
)


def take_shapes(
  config: Config,
  model: CLIPConfig,
  name: str,
  *,
  stated: Collection[str],
  keeps_vocabulary: bool,
) -> list[str]:
  """Makes `config.model` the model's, but for sizes that are free.

  Args:
    config: changed in place.
    model: that the run starts from.
    name: what errors call it.
    stated: dotted names of the fields that the command line gives.
    keeps_vocabulary: whether the run goes on with the model's.
  Returns:
    Lines for people: what differs.
  Raises:
    UsageError: the command line says other shapes.
  """
  found, said = dotted(model.to_dict()), _said(config)
  other = _contradictions(config, found, said, name, stated, keeps_vocabulary)
  sizes = _sizes(config, found, said, stated, fits=not other)
  pooling = model.text.pooling
  if config.initialize_new_vocabulary:
    pooling = said.get('text.pooling') or pooling
    # A new vocabulary's end need not be its highest id.
    pooling = 'end' if pooling == 'highest' else pooling
  vocab_size = None
  if keeps_vocabulary:
    vocab_size = model.text.vocab_size
  elif 'model.text.vocab_size' in stated:
    vocab_size = config.model.text.vocab_size
  notes = []
  if other:
    few = first_few([f'{name}={said[name]}' for name in other])
    notes.append(
      f'the recipe is for a model of other shapes ({few}), which give way to '
      "the weights'."
    )
  found.update(sizes)
  found.update({'text.pooling': pooling, 'text.vocab_size': vocab_size})
  _set_model(config, found)
  return notes + _describe_sizes(config, model, sizes)


def _contradictions(
  config: Config,
  found: Mapping[str, Any],
  said: Mapping[str, Any],
  model: str,
  stated: Collection[str],
  keeps_vocabulary: bool,
) -> list[str]:
  """Names of fields that a recipe says otherwise.

  Raises:
    UsageError: the command line does.
  """
  new_vocabulary = config.initialize_new_vocabulary
  other = []
  for name in sorted(said):
    free = name in _OPEN or (new_vocabulary and name == 'text.pooling')
    if name == 'text.vocab_size' and keeps_vocabulary:
      free = f'model.{name}' not in stated
    if free or found.get(name) == said[name]:
      continue
    key = f'model.{name}'
    by_preset = _field(config.model, name) is None
    source = 'model.preset' if by_preset else key
    if source in stated:
      preset = f' (model.preset={config.model.preset})'
      raise UsageError(
        f'{model} is another model: its {name} is '
        f'{found.get(name, "not there")}, and the command line says '
        f'{key}={said[name]}{preset if by_preset else ""}: leave that out.'
      )
    other.append(name)
  return other


def _sizes(
  config: Config,
  found: Mapping[str, Any],
  said: Mapping[str, Any],
  stated: Collection[str],
  *,
  fits: bool,
) -> dict[str, int]:
  """The image size and the context length of the run.

  The command line's, or those of a recipe for such a model, or its own.
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
    default = said.get(name, found[name]) if fits else found[name]
    sizes[name] = next(iter(given.values()), default)
  return sizes


def _describe_sizes(
  config: Config, model: CLIPConfig, sizes: Mapping[str, int]
) -> list[str]:
  """Lines on sizes that are not the model's, and what becomes of positions."""
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


def _said(config: Config) -> dict[str, Any]:
  """The fields of a model that a config says, by itself or by its preset."""
  fields = config.model.to_dict()
  for name in ('preset', 'dtype', 'remat', 'patch_dropout'):
    del fields[name]
  said = {k: v for k, v in dotted(fields).items() if v is not None}
  if not config.model.preset:
    return said
  return {**dotted(presets.find(config.model.preset).config.to_dict()), **said}


def _field(config: Config, name: str) -> Any:
  for key in name.split('.'):
    config = config.get(key, None)
  return config


def _set_model(config: Config, fields: Mapping[str, Any]) -> None:
  """Writes a model's fields into a config; those of another tower go."""
  model = config.model
  model.preset = ''
  model.embed_dim = fields['embed_dim']
  for tower in ('image', 'text'):
    for name in model[tower]:
      model[tower][name] = fields.get(f'{tower}.{name}')
  config.data.image_size = fields['image.image_size']
