"""Averages the weights of models that were trained from the same one.

WiSE-FT (arXiv 2109.01903) goes along the line between a model and what
fine-tuning made of it; model soups (arXiv 2203.05482) average many fine-tuned
models. Every array takes part alike: both towers, the projections, the
temperature (its logarithm, which is the parameter), and the running mean and
variance of a ResNet's batch norms.
"""

import os
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import clip_jax
from clip_jax import tokenizers
from clip_jax.errors import UsageError
from clip_jax.files import new_folder, replacing_folder, to_bytes
from clip_jax.inference.loading import Loaded
from clip_jax.models.description import Description
from clip_jax.trees import flat

Variables = Mapping[str, Any]  # collections by name of numpy arrays

RECORD = 'interpolation.json'  # says of which models an average was made


class Soup(NamedTuple):
  """The outcome of a greedy soup.

  Attributes:
    variables: the mean of the models that were taken.
    weights: of each model given: equal parts, or 0.
    scores: of each model alone.
    score: of the soup.
  """

  variables: Variables
  weights: tuple[float, ...]
  scores: tuple[float, ...]
  score: float


def average(models: Sequence[Variables], weights: Sequence[float]) -> Variables:
  """Returns the weighted sum of each array, in the dtype of the first model.

  Sums are in float64; whole numbers (the batches that a batch norm counted) are
  rounded. A model of weight 1 comes back bit by bit.

  Args:
    models: with the same arrays.
    weights: they sum to 1.
  """
  used = [(m, w) for m, w in zip(models, weights, strict=True) if w]

  def combine(*leaves: np.ndarray) -> np.ndarray:
    total = sum(
      np.asarray(leaf, np.float64) * w
      for leaf, (_, w) in zip(leaves, used, strict=True)
    )
    if np.issubdtype(leaves[0].dtype, np.integer):
      total = np.rint(total)
    return np.asarray(total, leaves[0].dtype)

  return jax.tree.map(combine, *(dict(model) for model, _ in used))


def greedy_soup(
  models: Sequence[Variables], score: Callable[[Variables], float]
) -> Soup:
  """Averages those models that the average gains by (the paper's recipe 1).

  The best alone is the first; from the next best on, each stays in the average
  if held-out data say that it is no worse with it.

  Args:
    models: with the same arrays.
    score: measures variables on held-out data; more is better.
  """
  scores = [score(model) for model in models]
  best, *others = sorted(range(len(models)), key=lambda i: -scores[i])
  taken, soup, reached = [best], models[best], scores[best]
  for i in others:
    mean = average(
      [models[j] for j in (*taken, i)],
      [1 / (len(taken) + 1)] * len((*taken, i)),
    )
    value = score(mean)
    if value >= reached:
      taken, soup, reached = [*taken, i], mean, value
  weights = tuple(
    1 / len(taken) if i in taken else 0.0 for i in range(len(models))
  )
  return Soup(soup, weights, tuple(scores), reached)


def check_alike(models: Sequence[Loaded]) -> Description:
  """Returns the description that all models share.

  Where the temperature began is no part of it: that is in the weights.

  Raises:
    UsageError: one differs from the first; the message names the first
      difference.
  """
  first = models[0]
  for model in models[1:]:
    difference = _difference(first.description, model.description)
    if difference is not None:
      name, own, other = difference
      raise UsageError(
        f'only models of one description can be averaged: {name} is {own} in '
        f'{first.origin}, and {other} in {model.origin}.'
      )
  return first.description


def write_model(
  out: str | os.PathLike,
  description: Description,
  variables: Variables,
  record: Mapping[str, Any],
) -> None:
  """Writes a model as the run directory of a single checkpoint, of step 0.

  No other layout can hold any model that there is: other libraries' have no
  word for some shapes, tokenizers and preprocessings.

  Args:
    out: does not exist yet, or is empty; it appears whole.
    record: what is written beside it, in `RECORD`.
  Raises:
    UsageError: the directory holds something.
    FailureError: it cannot be written.
  """
  from clip_jax.checkpoints.manager import Checkpoints

  out = new_folder(out)
  with replacing_folder(out) as folder:
    checkpoints = Checkpoints(folder, keep=1)
    state = types.SimpleNamespace(
      step=0,
      params=jax.tree.map(jnp.asarray, variables['params']),
      batch_stats=jax.tree.map(jnp.asarray, variables.get('batch_stats', {})),
      opt_state={},
      ema={},
      teacher={},
    )
    checkpoints.save(state, description, seed=0)
    checkpoints.close()
    content = {**record, 'clip_jax': clip_jax.__version__}
    (folder / RECORD).write_bytes(to_bytes(content))


def _difference(
  one: Description, other: Description
) -> tuple[str, str, str] | None:
  """Returns the name of the first difference, and both values."""
  parts = []
  for description in (one, other):
    fields = description.to_dict()
    model = fields['model']
    model.pop('initial_logit_scale')  # the weights have what became of it
    if model['initial_logit_bias'] is not None:
      model['initial_logit_bias'] = 'learned'
    del fields['tokenizer']
    parts.append(flat(fields))
  for name in sorted(parts[0].keys() | parts[1].keys()):
    own, theirs = (part.get(name, 'not there') for part in parts)
    if own != theirs:
      return name.replace('/', '.'), str(own), str(theirs)
  if _same_ids(one.tokenizer, other.tokenizer):
    return None
  ours, theirs = (
    'not there' if x is None else f'of kind {x["kind"]!r}'
    for x in (one.tokenizer, other.tokenizer)
  )
  return 'the vocabulary of the tokenizer', ours, theirs


def _same_ids(one: Any, other: Any) -> bool:
  """Returns whether two descriptions are of tokenizers that give the same."""
  if one is None or other is None or one == other:
    return one == other
  return tokenizers.same_ids(
    tokenizers.from_description(one), tokenizers.from_description(other)
  )
