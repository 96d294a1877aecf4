"""Completes a config from the trained model that the run starts from.

Fields that the config leaves open are taken from that model: shapes, tokenizer,
preprocessing. Fields that the command line gives are kept, or refused where the
weights contradict them. A recipe may be for a model of other shapes; it gives
way to the weights, with a note. Its tokenizer may not differ, unless a new
vocabulary is asked for: under old weights, its ids would mean other words.
"""

import copy
import dataclasses
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from clip_jax import tokenizers
from clip_jax.checkpoints.reading import read_description
from clip_jax.errors import UsageError
from clip_jax.models.config import CLIPConfig
from clip_jax.models.counting import TRAINING_ONLY
from clip_jax.models.description import Description
from clip_jax.models.lora import is_adapter
from clip_jax.models.positions import resize_model
from clip_jax.training.config import (
  INHERITED,
  Config,
  Start,
  fill_preprocessing,
  preprocessing_fields,
  tokenizer_path,
  trains_decoder,
)
from clip_jax.training.inherited_shapes import inherit_shapes
from clip_jax.training.saved_config import read_saved_config
from clip_jax.training.state import TrainState
from clip_jax.training.workdir import Workdir
from clip_jax.trees import first_difference, flat, path_name

if TYPE_CHECKING:
  from clip_jax.inference.loading import Loaded

_INITIAL_BIAS = -10.0  # SigLIP's (arXiv 2303.15343, section 3.2)
_EMBEDDING = 'text/token_embedding/embedding'
_DECODER_VOCABULARY = {
  'decoder/token_embedding/embedding',
  'decoder/logits/kernel',
  'decoder/logits/bias',
}


def inherit_config(
  config: Config, workdir: Workdir | None, stated: Collection[str]
) -> Start:
  """Completes a config from `initialize_from`, or from the run's checkpoint.

  Args:
    config, workdir, stated: as in `run.complete_config`.
  """
  if workdir is not None:
    saved = read_saved_config(workdir) or {}
    if 'tokenizer' not in stated and saved.get('tokenizer') == INHERITED:
      config = copy.deepcopy(config)
      config.tokenizer = INHERITED  # even if the recipe's file exists by now
    own = read_description(workdir.name)
    if own is not None:
      return inherit(config, own, f'the run in {workdir.name}', stated)
  from clip_jax.inference.loading import read_model

  loaded = read_model(config.initialize_from, dtype=np.dtype(np.float32))
  name = f'initialize_from={config.initialize_from}'
  return inherit(config, loaded.description, name, stated, loaded)


def inherit(
  config: Config,
  description: Description,
  name: str,
  stated: Collection[str] = (),
  weights: 'Loaded | None' = None,
) -> Start:
  """Completes a config from the description of a model.

  Args:
    config: not changed.
    description: of the model.
    name: what errors call it.
    stated: as in `run.complete_config`.
    weights: of the model; None where the run resumes its own checkpoint.
  Raises:
    UsageError: the two contradict each other.
  """
  start = Start(copy.deepcopy(config), weights=weights)
  model = _Inheritance(start, description, name, stated)
  model.inherit_tokenizer()
  model.inherit_shapes()
  model.inherit_decoder()
  model.inherit_temperature()
  model.inherit_preprocessing()
  if weights is not None:
    step = '' if weights.step is None else f' (step {weights.step:,})'
    start.notes.insert(0, f'{name}{step}: {model.summary()}')
  else:
    start.notes.clear()  # they were printed when the run began
  return start


class _Inheritance:
  """Completes the config of a `Start` from a model, part by part."""

  def __init__(
    self,
    start: Start,
    description: Description,
    name: str,
    stated: Collection[str],
  ):
    self._start = start
    self._config = start.config
    self._description = description
    self._name = name
    self._stated = stated
    self._new_vocabulary = start.config.initialize_new_vocabulary
    self._taken = ['weights']

  def summary(self) -> str:
    """Returns a sentence about what was taken."""
    *first, last = self._taken
    return f'{", ".join(first)} and {last} are taken from there.'

  def _note(self, line: str) -> None:
    self._start.notes.append(f'note: {line}')

  def inherit_tokenizer(self) -> None:
    """Chooses the tokenizer; refuses one whose ids differ from the model's."""
    config, own = self._config, self._description.tokenizer
    if self._new_vocabulary and config.tokenizer in ('', INHERITED):
      raise UsageError(
        'initialize_new_vocabulary=True needs the new one: name it in '
        'tokenizer.'
      )
    if self._start.weights is None:  # restoring compares the descriptions
      self._start.inherited = self._description
      config.tokenizer = config.tokenizer or INHERITED
      return
    if self._new_vocabulary:
      self._start.reinitialized.add(_EMBEDDING)
      self._note(
        f'tokenizer={config.tokenizer} is a new vocabulary: the token '
        'embedding begins anew.'
      )
      return
    self._start.inherited = self._description
    path = tokenizer_path(config.tokenizer)
    if path is not None and not path.exists():
      self._ignore_missing_tokenizer(path)
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

  def _ignore_missing_tokenizer(self, path: Path) -> None:
    """Notes, or refuses, that the config's tokenizer file does not exist."""
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
    """Refuses a tokenizer that gives texts other ids than the model's."""
    spec, text = self._config.tokenizer, self._description.model.text
    tokenizer = tokenizers.load(spec, text.context_length)
    own = self._description.tokenizer
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

  def inherit_shapes(self) -> None:
    """Sets the shapes of `config.model`."""
    notes = inherit_shapes(
      self._config,
      self._description.model,
      self._name,
      stated=self._stated,
      keeps_vocabulary=self._start.inherited is not None,
    )
    for note in notes:
      self._note(note)
    self._taken.append('model')

  def inherit_decoder(self) -> None:
    """Takes over the caption decoder, or begins a new one, or leaves it out."""
    fields, own = self._config.model.decoder, self._description.model.decoder
    if own is None:
      if fields.reads is not None:
        self._start.reinitialized.add('decoder')
        self._note('the caption decoder begins anew: the model has none.')
      return
    if not trains_decoder(self._config):
      self._note(
        "the model's caption decoder is left out: the objective has no use "
        'for it.'
      )
      return
    for field in fields:
      given, taken = fields[field], getattr(own, field)
      if given not in (None, taken):
        raise UsageError(
          f'{self._name} has a caption decoder whose {field} is {taken}, and '
          f'the config says model.decoder.{field}={given}: leave that out.'
        )
      fields[field] = taken
    if self._new_vocabulary:
      self._start.reinitialized |= _DECODER_VOCABULARY
    self._taken.append('decoder')

  def inherit_temperature(self) -> None:
    """Sets the initial logit scale and bias."""
    model, objective = self._config.model, self._config.objective
    own = self._description.model
    if model.initial_logit_scale is None:
      model.initial_logit_scale = own.initial_logit_scale
    elif 'model.initial_logit_scale' in self._stated:
      self._start.reinitialized.add('logit_scale')
    self._inherit_bias(own.initial_logit_bias)
    if anew := self._config.initialize_anew:
      self._note(f'{", ".join(map(str, anew))} begin anew (initialize_anew).')
    weights = self._start.weights
    if weights is None or 'logit_scale' in self._start.reinitialized:
      return
    scale = math.exp(float(weights.variables['params']['logit_scale']))
    most = objective.max_logit_scale
    if 0 < most < scale * (1 - 1e-6):
      self._note(
        f'the logit scale of the model is {scale:.4g}, and falls to '
        f'objective.max_logit_scale={most:g} at the first step (0: no limit).'
      )

  def _inherit_bias(self, own: float | None) -> None:
    model, name = self._config.model, self._config.objective.name
    given = model.initial_logit_bias
    if given is not None:
      if own is None or 'model.initial_logit_bias' in self._stated:
        self._start.reinitialized.add('logit_bias')
        self._note(f'the logit bias starts at {given:g}.')
    elif name == 'sigmoid' and own is None:
      model.initial_logit_bias = _INITIAL_BIAS
      self._start.reinitialized.add('logit_bias')
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

  def inherit_preprocessing(self) -> None:
    """Fills the preprocessing that the config leaves open."""
    data, own = self._config.data, self._description.preprocessing
    if not own.is_native:
      own = own.of_size(data.image_size)
    other = [
      f'data.{name}={data[name]!r} (the model had {value!r})'
      for name, value in preprocessing_fields(own).items()
      if data[name] not in (None, value)
    ]
    if other:
      self._note(f"the config's {', '.join(other)}.")
    fill_preprocessing(self._config, own)
    self._taken.append('preprocessing')


def inherit_weights(
  state: TrainState, start: Start, model: CLIPConfig
) -> TrainState:
  """Replaces random weights by those of `start`, which are removed from it.

  Args:
    state: its weights, of random numbers, give shapes and shardings.
    start: with weights.
    model: the shapes of the run, to which positions are resized.
  Raises:
    UsageError: the weights are those of another model.
  """
  assert start.weights is not None
  loaded, start.weights = start.weights, None
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
  anew = start.config.initialize_anew
  if anew:
    from clip_jax.training.parameter_groups import paths_matching

    own = flat(state.params)
    start.reinitialized |= paths_matching(anew, own, 'initialize_anew')
  new = start.reinitialized | (set() if model.decoder else {'decoder'})
  # The model that was read has no adapters, and no heads of self-distillation:
  # those of the state begin anew.
  new |= {name for name in flat(state.params) if is_adapter(name)}
  new.add(TRAINING_ONLY)
  arrays = {
    'params': {k: v for k, v in params.items() if not _is_new(k, new)},
    'batch_stats': flat(variables.get('batch_stats', {})),
  }
  _check_shapes(loaded.origin, arrays['params'], state.params, new)
  _check_shapes(loaded.origin, arrays['batch_stats'], state.batch_stats)
  return dataclasses.replace(
    state,
    params=_replace_leaves(arrays['params'], state.params),
    batch_stats=_replace_leaves(arrays['batch_stats'], state.batch_stats),
    ema=_replace_leaves(arrays['params'], state.ema),
  )


def _check_shapes(
  origin: str,
  arrays: Mapping[str, Any],
  state: Any,
  reinitialized: Collection[str] = (),
) -> None:
  """Refuses arrays whose names or shapes differ from those of a state."""
  expected = {
    k: v for k, v in flat(state).items() if not _is_new(k, reinitialized)
  }
  differing = first_difference(arrays, expected)
  if differing is not None:
    path, old, new = differing
    raise UsageError(
      f'initialize_from={origin} is another model: its {path} is {old}, and '
      f'{new} in the config.'
    )


def _is_new(path: str, reinitialized: Collection[str]) -> bool:
  """Returns whether a parameter, or the part that it is of, begins anew."""
  return path in reinitialized or path.partition('/')[0] in reinitialized


def _replace_leaves(arrays: Mapping[str, Any], state: Any) -> Any:
  """Replaces leaves of a state by arrays, in their dtypes and shardings.

  Leaves without an array are kept.
  """

  def replace(path, leaf):
    array = arrays.get(path_name(path))
    if array is None:
      return leaf
    return jax.make_array_from_callback(
      leaf.shape, leaf.sharding, lambda index: array[index].astype(leaf.dtype)
    )

  return jax.tree_util.tree_map_with_path(replace, state)
