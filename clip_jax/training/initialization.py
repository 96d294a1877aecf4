"""A run that starts from a trained model: what it takes from there.

What the config leaves open is that model's: shapes, tokenizer, preprocessing.
What the command line says counts, and is refused where the weights contradict
it. A recipe may be for a model of other shapes, which then gives way to the
weights, with a word; its tokenizer may not differ, unless a new vocabulary is
asked for: under old weights, its ids would mean other words.
"""

import copy
import dataclasses
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clip_jax import checkpoints, tokenizers
from clip_jax.errors import UsageError
from clip_jax.inference.loading import Loaded, read_model
from clip_jax.models import presets
from clip_jax.models.config import CLIPConfig
from clip_jax.models.description import Description
from clip_jax.models.positions import resize_model
from clip_jax.training import run_directory
from clip_jax.training.config import (
  INHERITED,
  Config,
  preprocessing_fields,
  take_preprocessing,
  tokenizer_path,
  with_defaults,
)
from clip_jax.training.program import Program
from clip_jax.training.state import TrainState, sharded_init
from clip_jax.training.workdir import Workdir
from clip_jax.trees import flat, path_name

_INITIAL_BIAS = -10.0  # SigLIP's (arXiv 2303.15343, section 3.2)
_EMBEDDING = 'text/token_embedding/embedding'

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


@dataclasses.dataclass
class Start:
  """A config with nothing left open, and where its weights begin.

  Attributes:
    config: as it runs.
    kept: the description whose tokenizer and vocabulary the run has; None:
      the config's tokenizer decides.
    notes: lines for people: what was taken from where.
    weights: of `initialize_from`; None where there is none, or where the run
      has checkpoints of its own. `first_state` takes them away.
    anew: paths of parameters that begin anew all the same.
  """

  config: Config
  kept: Description | None = None
  notes: list[str] = dataclasses.field(default_factory=list)
  weights: Loaded | None = None
  anew: set[str] = dataclasses.field(default_factory=set)


def find_start(
  config: Config,
  workdir: Workdir | None = None,
  stated: Collection[str] = (),
) -> Start:
  """Completes a config by the model that it starts from.

  Args:
    config: not changed.
    workdir: the run's. Where it has checkpoints, these say how the run began:
      the model that it started from may be gone by then.
    stated: dotted names of the fields that the command line gives.
  Raises:
    UsageError: there is no model at `initialize_from`, or it contradicts the
      config.
    FailureError: there is one, and it cannot be read.
  """
  if not config.initialize_from:
    _check_alone(config)
    return Start(with_defaults(config))
  if workdir is not None:
    recorded = run_directory.recorded(workdir) or {}
    if 'tokenizer' not in stated and recorded.get('tokenizer') == INHERITED:
      config = copy.deepcopy(config)
      config.tokenizer = INHERITED  # though the recipe's may be there by now
    own = checkpoints.read_description(workdir.name)
    if own is not None:
      return inherit(config, own, f'the run in {workdir.name}', stated)
  loaded = read_model(config.initialize_from, dtype=np.dtype(np.float32))
  name = f'initialize_from={config.initialize_from}'
  return inherit(config, loaded.description, name, stated, loaded)


def _check_alone(config: Config) -> None:
  """Refuses what means nothing without a model to start from."""
  for name, said in (
    ('initialize_new_vocabulary=True', config.initialize_new_vocabulary),
    (f'tokenizer={INHERITED}', config.tokenizer == INHERITED),
  ):
    if said:
      raise UsageError(
        f'{name} says how to start from a model: name that in initialize_from.'
      )


def inherit(
  config: Config,
  found: Description,
  name: str,
  stated: Collection[str] = (),
  weights: Loaded | None = None,
) -> Start:
  """Completes a config by the description of a model.

  Args:
    config: not changed.
    found: of the model.
    name: what errors call it.
    stated: as in `find_start`.
    weights: the model; None where the run goes on from its own checkpoint.
  Raises:
    UsageError: the two contradict each other.
  """
  start = Start(copy.deepcopy(config), weights=weights)
  model = _Model(start, found, name, stated)
  model.take_tokenizer()
  model.take_shapes()
  model.take_temperature()
  model.take_preprocessing()
  if weights is not None:
    step = '' if weights.step is None else f' (step {weights.step:,})'
    start.notes.insert(0, f'{name}{step}: {model.summary()}')
  else:
    start.notes.clear()  # they were told when the run began
  return start


class _Model:
  """The model that a config is completed by, part by part."""

  def __init__(
    self, start: Start, found: Description, name: str, stated: Collection[str]
  ):
    self._start = start
    self._config = start.config
    self._found = found
    self._name = name
    self._stated = stated
    self._new_vocabulary = start.config.initialize_new_vocabulary
    self._taken = ['weights']

  def summary(self) -> str:
    """What was taken, in words."""
    *first, last = self._taken
    return f'{", ".join(first)} and {last} are taken from there.'

  def _note(self, line: str) -> None:
    self._start.notes.append(f'note: {line}')

  def take_tokenizer(self) -> None:
    """Settles on a tokenizer; refuses one of other ids than the model's."""
    config, own = self._config, self._found.tokenizer
    if self._new_vocabulary and config.tokenizer in ('', INHERITED):
      raise UsageError(
        'initialize_new_vocabulary=True needs the new one: name it in '
        'tokenizer.'
      )
    if self._start.weights is None:  # restoring compares the descriptions
      self._start.kept = self._found
      config.tokenizer = config.tokenizer or INHERITED
      return
    if self._new_vocabulary:
      self._start.anew.add(_EMBEDDING)
      self._note(
        f'tokenizer={config.tokenizer} is a new vocabulary: the token '
        'embedding begins anew.'
      )
      return
    self._start.kept = self._found
    path = tokenizer_path(config.tokenizer)
    if path is not None and not path.exists():
      self._do_without(path)
    elif config.tokenizer not in ('', INHERITED):
      self._compare_tokenizer(path)
      return
    if own is None:
      raise UsageError(
        f'{self._name} came without a tokenizer: name the one that it was '
        'trained with, as in --config.tokenizer=hf:PATH.'
      )
    config.tokenizer = INHERITED
    self._taken.append('tokenizer')

  def _do_without(self, path: Path) -> None:
    """A tokenizer file that is not there: the model has its own."""
    spec = self._config.tokenizer
    if 'tokenizer' in self._stated:
      raise UsageError(
        f'tokenizer={spec}: there is no {path.absolute()}. Leave it out to '
        f"take the model's own, of {self._name}; to train a new vocabulary "
        'under these weights, say --config.initialize_new_vocabulary=True.'
      )
    self._note(
      f"the recipe's tokenizer={spec} is not there ({path.absolute()}): the "
      "model's own is taken, and none is trained."
    )

  def _compare_tokenizer(self, path: Path | None) -> None:
    """Refuses a tokenizer that gives texts other ids than the model knows."""
    spec, text = self._config.tokenizer, self._found.model.text
    tokenizer = tokenizers.load(spec, text.context_length)
    own = self._found.tokenizer
    if own is None:
      same = tokenizer.vocab_size == text.vocab_size
    else:
      own = {**own, 'context_length': text.context_length}
      same = tokenizers.same_ids(tokenizer, tokenizers.from_description(own))
    if not same:
      where = '' if path is None else f' ({path.absolute()})'
      take = '--config.tokenizer=initialize_from takes its own'
      raise UsageError(
        f'{self._name} was trained with another vocabulary than '
        f'tokenizer={spec}{where}: '
        f'{take if own else "name the one that it was trained with"}; '
        '--config.initialize_new_vocabulary=True trains the new one, whose '
        'embedding then begins anew.'
      )

  def take_shapes(self) -> None:
    """Makes `config.model` the model's, but for sizes that are free."""
    config, text = self._config, self._found.model.text
    found, said = _fields(self._found.model), _said(config)
    other = self._contradictions(found, said)
    sizes = self._sizes(found, said, fits=not other)
    pooling = text.pooling
    if self._new_vocabulary:
      pooling = said.get('text.pooling') or pooling
      # A new vocabulary's end need not be its highest id.
      pooling = 'end' if pooling == 'highest' else pooling
    self._taken.append('model')
    if other:
      few = ', '.join(f'{name}={said[name]}' for name in other[:3])
      more = f' and {len(other) - 3} more' if len(other) > 3 else ''
      self._note(
        f'the recipe is for a model of other shapes ({few}{more}), which give '
        "way to the weights'."
      )
    vocab_size = None
    if self._start.kept is not None:
      vocab_size = text.vocab_size
    elif 'model.text.vocab_size' in self._stated:
      vocab_size = config.model.text.vocab_size
    found.update(sizes)
    found.update({'text.pooling': pooling, 'text.vocab_size': vocab_size})
    _set_model(config, found)
    self._note_sizes(sizes)

  def _contradictions(
    self, found: Mapping[str, Any], said: Mapping[str, Any]
  ) -> list[str]:
    """Names of fields that a recipe says otherwise.

    Raises:
      UsageError: the command line does.
    """
    other = []
    for name in sorted(said):
      free = name in _OPEN or (self._new_vocabulary and name == 'text.pooling')
      if name == 'text.vocab_size' and self._start.kept is not None:
        free = f'model.{name}' not in self._stated
      if free or found.get(name) == said[name]:
        continue
      key = f'model.{name}'
      by_preset = _field(self._config.model, name) is None
      source = 'model.preset' if by_preset else key
      if source in self._stated:
        preset = f' (model.preset={self._config.model.preset})'
        raise UsageError(
          f'{self._name} is another model: its {name} is '
          f'{found.get(name, "not there")}, and the command line says '
          f'{key}={said[name]}{preset if by_preset else ""}: leave that out.'
        )
      other.append(name)
    return other

  def _sizes(
    self, found: Mapping[str, Any], said: Mapping[str, Any], fits: bool
  ) -> dict[str, int]:
    """The image size and the context length of the run.

    The command line's, or those of a recipe for such a model, or its own.
    """
    sizes = {}
    for name, keys in (
      ('image.image_size', ('data.image_size', 'model.image.image_size')),
      ('text.context_length', ('model.text.context_length',)),
    ):
      values = {key: _field(self._config, key) for key in keys}
      values = {key: v for key, v in values.items() if v is not None}
      given = {k: v for k, v in values.items() if k in self._stated}
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

  def _note_sizes(self, sizes: Mapping[str, int]) -> None:
    image, text = self._found.model.image, self._found.model.text
    size, length = sizes['image.image_size'], sizes['text.context_length']
    if size != image.image_size:
      self._note(
        f'images of {size} pixels, where the model had {image.image_size}: '
        'its image positions are interpolated.'
      )
    if length == text.context_length:
      return
    if self._config.initialize_text_positions == 'interpolate':
      how = 'its text positions are interpolated, so that all of them move'
    elif length > text.context_length:
      how = (
        f'its {text.context_length} text positions are kept, and '
        f'{length - text.context_length} new ones, copies of the last, '
        'appended'
      )
    else:
      how = f'{length} of its text positions are kept'
    self._note(
      f'texts of {length} tokens, where the model had {text.context_length}: '
      f'{how}.'
    )

  def take_temperature(self) -> None:
    """Settles where the logit scale and bias begin."""
    model, objective = self._config.model, self._config.objective
    found = self._found.model
    if model.initial_logit_scale is None:
      model.initial_logit_scale = found.initial_logit_scale
    elif 'model.initial_logit_scale' in self._stated:
      self._start.anew.add('logit_scale')
    self._take_bias(found.initial_logit_bias)
    weights = self._start.weights
    if weights is None or 'logit_scale' in self._start.anew:
      return
    scale = math.exp(float(weights.variables['params']['logit_scale']))
    most = objective.max_logit_scale
    if 0 < most < scale * (1 - 1e-6):
      self._note(
        f'the logit scale of the model is {scale:.4g}, and falls to '
        f'objective.max_logit_scale={most:g} at the first step (0: no limit).'
      )

  def _take_bias(self, own: float | None) -> None:
    model, name = self._config.model, self._config.objective.name
    said = model.initial_logit_bias
    if said is not None:
      if own is None or 'model.initial_logit_bias' in self._stated:
        self._start.anew.add('logit_bias')
        self._note(f'the logit bias starts at {said:g}.')
    elif name == 'sigmoid' and own is None:
      model.initial_logit_bias = _INITIAL_BIAS
      self._start.anew.add('logit_bias')
      self._note(
        'the sigmoid loss needs a logit bias, which a model of the softmax '
        f'loss has not: it starts at {_INITIAL_BIAS:g} '
        '(model.initial_logit_bias).'
      )
    elif name == 'sigmoid':
      model.initial_logit_bias = own
    elif own is not None:
      self._note(
        'the softmax loss has no use for the logit bias of the model, which '
        'is left out (objective.name=sigmoid goes on with it).'
      )

  def take_preprocessing(self) -> None:
    """Fills what the config leaves open of how images become pixels."""
    data = self._config.data
    own = self._found.preprocessing.of_size(data.image_size)
    other = [
      f'data.{name}={data[name]!r} (the model had {value!r})'
      for name, value in preprocessing_fields(own).items()
      if data[name] not in (None, value)
    ]
    if other:
      self._note(f"the config's {', '.join(other)}.")
    take_preprocessing(self._config, own)
    self._taken.append('preprocessing')


def _fields(model: CLIPConfig) -> dict[str, Any]:
  """A model's fields by dotted names."""
  return _flat(model.to_dict())


def _said(config: Config) -> dict[str, Any]:
  """The fields of a model that a config says, by itself or by its preset."""
  fields = config.model.to_dict()
  for name in ('preset', 'dtype', 'remat', 'patch_dropout'):
    del fields[name]
  said = {k: v for k, v in _flat(fields).items() if v is not None}
  if not config.model.preset:
    return said
  return {**_fields(presets.find(config.model.preset).config), **said}


def _flat(fields: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  found: dict[str, Any] = {}
  for key, value in fields.items():
    if isinstance(value, Mapping):
      found |= _flat(value, f'{prefix}{key}.')
    else:
      found[f'{prefix}{key}'] = value
  return found


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


def first_state(
  program: Program, seed: int, start: Start | None = None
) -> TrainState:
  """The state before the first update.

  The optimizer starts anew in any case, and so does the schedule.

  Args:
    program: the run's.
    seed: of the initial weights.
    start: whose weights are taken instead, the temperature's too, at the sizes
      of the program's model; they are gone from it then.
  Raises:
    UsageError: the weights are not those of the program's model.
  """
  state = sharded_init(program.module, program.optimizer, program.mesh, seed)
  if start is None or start.weights is None:
    return state
  loaded, start.weights = start.weights, None
  model = program.module.config
  variables, _ = resize_model(
    loaded.variables,
    loaded.description.model,
    image_size=model.image.image_size,
    context_length=model.text.context_length,
    method=loaded.positions,
    text_method=start.config.initialize_text_positions,
  )
  params = flat(variables['params'])
  if model.initial_logit_bias is None:
    params.pop('logit_bias', None)
  arrays = {
    'params': {k: v for k, v in params.items() if k not in start.anew},
    'batch_stats': flat(variables.get('batch_stats', {})),
  }
  _check_shapes(loaded.origin, arrays['params'], state.params, start.anew)
  _check_shapes(loaded.origin, arrays['batch_stats'], state.batch_stats)
  return dataclasses.replace(
    state,
    params=_placed(arrays['params'], state.params),
    batch_stats=_placed(arrays['batch_stats'], state.batch_stats),
  )


def _check_shapes(
  origin: str,
  found: Mapping[str, Any],
  state: Any,
  anew: Collection[str] = (),
) -> None:
  """Refuses arrays of other names or shapes than a state has."""
  wanted = {k: v for k, v in flat(state).items() if k not in anew}
  for path in sorted(found.keys() | wanted.keys()):
    old, new = (
      list(tree[path].shape) if path in tree else 'not there'
      for tree in (found, wanted)
    )
    if old != new:
      raise UsageError(
        f'initialize_from={origin} is another model: its {path} is {old}, and '
        f'{new} in the config.'
      )


def _placed(found: Mapping[str, Any], state: Any) -> Any:
  """Arrays in the dtypes of a state's, and where those are.

  A leaf of the state that none is found for stays.
  """

  def place(path, leaf):
    array = found.get(path_name(path))
    if array is None:
      return leaf
    return jax.make_array_from_callback(
      leaf.shape, leaf.sharding, lambda part: array[part].astype(leaf.dtype)
    )

  return jax.tree_util.tree_map_with_path(place, state)
