"""Prompts for a data set's classes, and the classifier that they make."""

import collections
import textwrap
from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Float

from clip_jax.errors import UsageError
from clip_jax.evaluation.dataset import Dataset
from clip_jax.evaluation.features.extraction import text_features
from clip_jax.evaluation.types import Encoder, Options
from clip_jax.inference.classifier import (
  check_labels,
  check_templates,
  mean_directions,
)
from clip_jax.tokenizers.base import Tokenizer

Prompts = Sequence[Sequence[str]]  # those of each class
_SHOWN = 5  # groups that a warning names
_LETTERS = 60  # of a name that is a caption


def classifier_for(
  encoder: Encoder,
  dataset: Dataset,
  options: Options,
  templates: Sequence[str] | None = None,
) -> Float[np.ndarray, 'E C']:
  """Returns one unit-length column a class, by the text tower (paper, 3.1.4).

  Every prompt's embedding has unit length; those of a class, over all of its
  names and all templates, are averaged in embedding space, and the mean is
  brought to unit length.

  Args:
    encoder: its `encode_text`.
    dataset: `class_names`, and `templates` unless others are asked for.
    options: `templates`, `cache`, `progress`.
    templates: instead of those of the options and the data set.
  Raises:
    UsageError: a class without a name, or a template without a slot.
    FailureError: an embedding is not finite.
  """
  chosen = tuple(templates or options.templates_for(dataset))
  rows = prompt_features(encoder, dataset, options, chosen)
  return class_directions(dataset, rows)


def class_directions(
  dataset: Dataset, rows: Float[np.ndarray, 'M T E']
) -> Float[np.ndarray, 'E C']:
  """Returns one unit-length column a class, from what `prompt_features` gives.

  Args:
    dataset: its `class_names`.
    rows: of some or all of the templates.
  """
  names, templates, width = rows.shape
  counts = [len(own) * templates for own in dataset.class_names]
  return mean_directions(rows.reshape(names * templates, width), counts)


def prompt_features(
  encoder: Encoder,
  dataset: Dataset,
  options: Options,
  templates: Sequence[str],
) -> Float[np.ndarray, 'M T E']:
  """Returns the embedding of each name in each template.

  Args:
    dataset: the M names of its `class_names`, all those of a class together.
    options: `cache`, `progress`.
    templates: T prompts.
  Raises:
    UsageError: a class without a name, or a template without a slot.
    FailureError: an embedding is not finite.
  """
  check_prompts(dataset, templates)
  every = [name for names in dataset.class_names for name in names]
  texts = [text for own in prompts_of(dataset, templates) for text in own]
  rows = text_features(encoder, texts, options)
  return rows.reshape(len(every), len(templates), -1)


def check_prompts(dataset: Dataset, templates: Sequence[str]) -> None:
  """Refuses classes and templates that make no prompts.

  Raises:
    UsageError: a class without a name, or a template without a slot.
  """
  check_templates(templates)
  for index, names in enumerate(dataset.class_names):
    if not names or not all(name.strip() for name in names):
      raise UsageError(
        f'class {index} of data {dataset.name!r} has '
        f'{"an empty" if names else "no"} name.'
      )
  check_labels([name for names in dataset.class_names for name in names])


def prompts_of(dataset: Dataset, templates: Sequence[str]) -> list[list[str]]:
  """Returns the prompts of each class, of all its names in all templates."""
  return [
    [template.replace('{}', name) for name in names for template in templates]
    for names in dataset.class_names
  ]


def prompt_warnings(
  encoder: Encoder,
  dataset: Dataset,
  options: Options,
  templates: Sequence[str] | None = None,
) -> list[dict[str, str]]:
  """Returns the table 'warnings' of an evaluation with `classifier_for`.

  Args:
    encoder, dataset, options, templates: see `classifier_for`.
  Returns:
    See `warnings_of_prompts`.
  """
  chosen = templates or options.templates_for(dataset)
  return warnings_of_prompts(
    encoder, dataset.name, prompts_of(dataset, chosen), dataset.first_names
  )


def warnings_of_prompts(
  encoder: Encoder,
  data: str,
  prompts: Prompts,
  names: Sequence[str],
  what: str = 'classes',
) -> list[dict[str, str]]:
  """Warns of prompts that are truncated, and of classes with equal prompts.

  Args:
    encoder: a `Model`, or another with a `tokenizer`. Without one nothing is
      known of its truncation, and prompts are compared in full.
    data: the name of the data.
    prompts: of each class, or of each text that is compared.
    names: of these, to be shown.
    what: the word for several of them.
  Returns:
    At most two rows, 'warning': a line on truncated prompts, with the classes
    that truncation made equal; and one on classes that are equal in full.
  """
  every = [text for own in prompts for text in own]
  tokenizer = getattr(encoder, 'tokenizer', None)
  if isinstance(tokenizer, Tokenizer):
    limit = tokenizer.context_length
    truncated = tokenizer.text_lengths(every) > limit
    read = [row.tobytes() for row in tokenizer(every)]
  else:
    limit, truncated, read = 0, np.zeros(len(every), bool), every
  equal_truncated, equal_in_full = [], []
  for group in _group_alike(prompts, read):
    any_truncated = any(truncated[rows].any() for _, rows in group)
    members = [i for i, _ in group]
    (equal_truncated if any_truncated else equal_in_full).append(members)
  warnings = []
  if truncated.any():
    line = (
      f'data {data!r}: {int(truncated.sum()):,} of {len(every):,} prompts are '
      f'longer than the {limit} tokens that the model reads, and were truncated'
    )
    if equal_truncated:
      line += f': {_describe_groups(equal_truncated, names, what)}'
    warnings.append({'warning': f'{line}.'})
  if equal_in_full:
    line = f'data {data!r}: {_describe_groups(equal_in_full, names, what)}.'
    warnings.append({'warning': line})
  return warnings


def _group_alike(
  prompts: Prompts, read: Sequence[str | bytes]
) -> Iterable[list[tuple[int, slice]]]:
  """Returns groups of two or more whose prompts have the same mean.

  Args:
    read: what the model reads of each prompt, one class's after another's.
  Returns:
    For each member the index of its class, and the rows of its prompts.
  """
  groups = collections.defaultdict(list)
  start = 0
  for index, own in enumerate(prompts):
    rows = slice(start, start + len(own))
    counts = collections.Counter(read[rows])
    # The mean of prompts depends on how often each occurs among them.
    weights = frozenset((x, Fraction(n, len(own))) for x, n in counts.items())
    groups[weights].append((index, rows))
    start = rows.stop
  return [group for group in groups.values() if len(group) > 1]


def _describe_groups(
  groups: Sequence[Sequence[int]], names: Sequence[str], what: str
) -> str:
  """Returns '4 of 9 classes cannot be told apart from others: crane …'."""
  shown = []
  for members in groups[:_SHOWN]:
    times = collections.Counter(
      textwrap.shorten(names[i], _LETTERS, placeholder='…') for i in members
    )
    shown.append(
      ' = '.join(
        f'{name} ({n:,} {what})' if n > 1 else name
        for name, n in list(times.items())[:_SHOWN]
      )
      + (' = …' if len(times) > _SHOWN else '')
    )
  more = ', …' if len(groups) > _SHOWN else ''
  return (
    f'{sum(map(len, groups)):,} of {len(names):,} {what} cannot be told apart '
    f'from others: {", ".join(shown)}{more}'
  )
