"""The names that a model gives to images of each group (paper, section 7.1).

The groups are the classes of a data set: skin tones, ages, or two attributes at
once, as 'Black Female'. The model chooses among the names of a *design*; each
name is of a kind. The paper's experiment adds names that demean ('thief',
'gorilla'), and then one that is merely apt ('child'), and finds that what
is offered decides what harm is done.

What the numbers are: how often this model, among these names, with these
prompts, chose a kind for these images. What they are not: a property of
people or of groups, whose labels are their annotators' and whose categories are
themselves disputed; a bound for other names or images; a proof that a use is
harmless, however equal they are. On drawings, such as emoji, they show that the
measurement works, and nothing of how the model treats people.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from clip_jax.evaluation.dataset import Dataset
from clip_jax.evaluation.examples import Examples, examples_of
from clip_jax.evaluation.features.concurrency import encode_concurrently
from clip_jax.evaluation.features.extraction import read_features
from clip_jax.evaluation.metrics.intervals import clopper_pearson
from clip_jax.evaluation.metrics.ranking import top_classes
from clip_jax.evaluation.prompts import classifier_for, prompt_warnings
from clip_jax.evaluation.tasks.bias_designs import (
  Candidates,
  added_names,
  candidates,
  checked,
  shipped_designs,
)
from clip_jax.evaluation.types import Encoder, Evaluation, Options

NOTES = (
  'A rate is how often this model, offered these names, chose them for these '
  'images; other names, prompts or images give other rates.',
  'Groups are the labels that the data set came with; a rate is no property of '
  'the people of a group.',
  'Drawings, such as emoji, say nothing of how a model treats people.',
  'Neither high accuracy nor equal rates show that a use is fair or harmless.',
)


def evaluate(
  encoder: Encoder, dataset: Dataset, options: Options
) -> Evaluation:
  """Measures how often each kind of name is given to each group (tables 3-7).

  All designs are evaluated on the same features. Groups without an image have
  no rates, though their names are offered.

  Args:
    options: `designs`; `templates`, `cache`, `max_corrupt_records`, `progress`.
  Returns:
    metrics: 'examples', 'groups' (counts: images, and groups that have any);
      where a design has two kinds or more 'DESIGN/KIND', the rate of a kind
      over all images, and 'DESIGN/KIND/largest_difference', between the
      rates of two groups;
      'DESIGN/accuracy', where the groups' own names are offered.
    records: for each image 'id', 'label' (the group), 'predicted': design to
      name, and 'kind': design to kind.
    tables: 'rates': 'design', 'group', 'kind', 'count', 'images', 'rate',
      'low', 'high'; a group's rates sum to 1. 'categories': the same with
      'category', a single name, where its count is not 0. 'accuracy': 'design',
      'group', 'count' (right), 'images', 'rate', 'low', 'high'.
      'disparities': 'design', 'kind', 'highest', 'lowest' (groups, the first of
      equals), 'difference', 'ratio' (None where the lowest rate is 0). 'notes':
      'note', what the numbers mean. 'warnings': see `Evaluation`, of the names
      of all designs. Intervals are Clopper-Pearson's of 95 %.
  Raises:
    UsageError: a design makes no sense, or the data have no names or labels.
    FailureError: too many images are corrupt, or features are not finite.
  """
  dataset.require_classes('bias')
  designs = shipped_designs()
  if options.bias.designs is not None:
    designs = checked(options.bias.designs, 'of the options')
  groups = dataset.first_names
  offered = candidates(designs, groups)
  added = tuple((name,) for name in added_names(designs))
  asked = dataclasses.replace(
    dataset, class_names=(*dataset.class_names, *added)
  )
  weights, features = encode_concurrently(
    options,
    lambda options: classifier_for(encoder, asked, options),
    lambda options: read_features(encoder, dataset.test.source, options),
  )
  examples = examples_of(
    features, dataset.test, dataset, 'bias', multilabel=False
  )
  chosen: dict[str, Int[np.ndarray, ' N']] = {}
  for design, names in offered.items():
    best, _ = top_classes(
      examples.features.embeddings,
      weights[:, names.columns],
      k=1,
      logit_scale=encoder.logit_scale,
    )
    chosen[design] = best[:, 0]
  result = _describe(examples, groups, offered, chosen)
  warnings = prompt_warnings(encoder, asked, options)
  return dataclasses.replace(
    result, tables={**result.tables, 'warnings': warnings}
  )


def count_names(
  labels: Int[np.ndarray, ' N'], chosen: Int[np.ndarray, ' N'], shape
) -> Int[np.ndarray, 'G C']:
  """Returns how often each of C names was chosen for each of G groups.

  Args:
    labels: the group of each image.
    chosen: the name of each image.
    shape: (G, C).
  """
  counts = np.zeros(shape, np.int64)
  np.add.at(counts, (labels, chosen), 1)
  return counts


class _Tally(NamedTuple):
  """The choices in one design, for the G groups that have images.

  Attributes:
    design: its name.
    names: what was offered.
    groups: the names of the groups.
    group_indices: int64 [G], of these among all groups.
    counts: int64 [G, C], of each name.
    kinds: int64 [G, K], of each kind.
  """

  design: str
  names: Candidates
  groups: list[str]
  group_indices: Int[np.ndarray, ' G']
  counts: Int[np.ndarray, 'G C']
  kinds: Int[np.ndarray, 'G K']


def _describe(
  examples: Examples,
  groups: tuple[str, ...],
  offered: dict[str, Candidates],
  chosen: dict[str, np.ndarray],
) -> Evaluation:
  there = np.unique(examples.answers)
  shown = [groups[g] for g in there]
  metrics = {'examples': float(len(examples)), 'groups': float(len(there))}
  chance: dict[str, float] = {}
  tables: dict[str, list[dict[str, Any]]] = {
    'rates': [],
    'categories': [],
    'accuracy': [],
    'disparities': [],
    'notes': [{'note': note} for note in NOTES],
  }
  for design, names in offered.items():
    shape = (len(groups), len(names.names))
    counts = count_names(examples.answers, chosen[design], shape)[there]
    of_kind = names.kind_of[:, None] == np.arange(len(names.kinds))  # C K
    tally = _Tally(design, names, shown, there, counts, counts @ of_kind)
    tables['rates'] += _rates(tally)
    tables['categories'] += _categories(tally)
    tables['accuracy'] += _accuracies(tally)
    tables['disparities'] += _disparities(tally)
    metrics |= _metrics(tally)
    if names.has_groups:
      chance[f'{design}/accuracy'] = 1 / len(names.names)
  records = _records(examples, groups, offered, chosen)
  return Evaluation(metrics, records, examples.corrupt, tables, chance)


def _metrics(tally: _Tally) -> dict[str, float]:
  total = int(tally.counts.sum())
  metrics: dict[str, float] = {}
  if len(tally.names.kinds) > 1:  # else all are of it
    for kind, count in zip(
      tally.names.kinds, tally.kinds.sum(axis=0), strict=True
    ):
      metrics[f'{tally.design}/{kind}'] = int(count) / total
    for row in _disparities(tally):
      name = f'{tally.design}/{row["kind"]}/largest_difference'
      metrics[name] = row['difference']
  if tally.names.has_groups:
    metrics[f'{tally.design}/accuracy'] = sum(_hits(tally)) / total
  return metrics


def _rates(tally: _Tally) -> list[dict[str, Any]]:
  return [
    {
      'design': tally.design,
      'group': group,
      'kind': kind,
      **_rate(int(count), int(counts.sum())),
    }
    for group, counts in zip(tally.groups, tally.kinds, strict=True)
    for kind, count in zip(tally.names.kinds, counts, strict=True)
  ]


def _categories(tally: _Tally) -> list[dict[str, Any]]:
  return [
    {
      'design': tally.design,
      'group': group,
      'kind': tally.names.kinds[tally.names.kind_of[c]],
      'category': tally.names.names[c],
      **_rate(int(counts[c]), int(counts.sum())),
    }
    for group, counts in zip(tally.groups, tally.counts, strict=True)
    for c in np.flatnonzero(counts)
  ]


def _accuracies(tally: _Tally) -> list[dict[str, Any]]:
  if not tally.names.has_groups:
    return []
  totals = tally.counts.sum(axis=1).tolist()
  return [
    {'design': tally.design, 'group': group, **_rate(hits, total)}
    for group, hits, total in zip(
      tally.groups, _hits(tally), totals, strict=True
    )
  ]


def _hits(tally: _Tally) -> list[int]:
  """Returns how often each group was given its own name."""
  # The groups' columns come first among all names; see `candidates`.
  name_of = {int(column): c for c, column in enumerate(tally.names.columns)}
  own = [name_of[int(g)] for g in tally.group_indices]
  return tally.counts[np.arange(len(own)), own].tolist()


def _disparities(tally: _Tally) -> list[dict[str, Any]]:
  """Returns the differences between groups, where there are two or more."""
  if len(tally.groups) < 2:
    return []
  rates = tally.kinds / tally.counts.sum(axis=1, keepdims=True)
  return [
    {
      'design': tally.design,
      'kind': kind,
      **_disparity(rates[:, k], tally.groups),
    }
    for k, kind in enumerate(tally.names.kinds)
  ]


def _rate(count: int, total: int) -> dict[str, Any]:
  interval = clopper_pearson(count, total)
  return {
    'count': count,
    'images': total,
    'rate': count / total,
    'low': interval.low,
    'high': interval.high,
  }


def _disparity(rates: np.ndarray, groups: list[str]) -> dict[str, Any]:
  high, low = int(rates.argmax()), int(rates.argmin())
  lowest = float(rates[low])
  return {
    'highest': groups[high],
    'lowest': groups[low],
    'difference': float(rates[high]) - lowest,
    'ratio': float(rates[high]) / lowest if lowest else None,
  }


def _records(
  examples: Examples,
  groups: tuple[str, ...],
  offered: dict[str, Candidates],
  chosen: dict[str, np.ndarray],
) -> list[dict[str, Any]]:
  records = []
  for i, key in enumerate(examples.ids):
    predicted: dict[str, str] = {}
    kind: dict[str, str] = {}
    for design, names in offered.items():
      choice = int(chosen[design][i])
      predicted[design] = names.names[choice]
      kind[design] = names.kinds[names.kind_of[choice]]
    records.append(
      {
        'id': key,
        'label': groups[examples.answers[i]],
        'predicted': predicted,
        'kind': kind,
      }
    )
  return records
