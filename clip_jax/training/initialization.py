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
from collections.abc import Collection
from pathlib import Path

import numpy as np

from clip_jax import checkpoints, tokenizers
from clip_jax.errors import UsageError
from clip_jax.inference.loading import Loaded, read_model
from clip_jax.models.description import Description
from clip_jax.training import run_directory
from clip_jax.training.config import (
  INHERITED,
  Config,
  preprocessing_fields,
  take_preprocessing,
  tokenizer_path,
  with_defaults,
)
from clip_jax.training.initial_shapes import take_shapes
from clip_jax.training.workdir import Workdir

_INITIAL_BIAS = -10.0  # SigLIP's (arXiv 2303.15343, section 3.2)
_EMBEDDING = 'text/token_embedding/embedding'


@dataclasses.dataclass
class Start:
  """A config with nothing left open, and where its weights begin.

  Attributes:
    config: as it runs.
    kept: the description whose tokenizer and vocabulary the run has; None:
      the config's tokenizer decides.
    notes: lines for people: what was taken from where.
    weights: of `initialize_from`; None where there is none, or where the run
      has checkpoints of its own. `initial_state.first_state` takes them away.
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
    lines = take_shapes(
      self._config,
      self._found.model,
      self._name,
      stated=self._stated,
      keeps_vocabulary=self._start.kept is not None,
    )
    for line in lines:
      self._note(line)
    self._taken.append('model')

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
