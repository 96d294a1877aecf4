"""Prompts that do not tell classes apart: the same, or cut by the model.

A text tower sees the beginning of a long text. Where a class's name stood in
the rest, its prompt is that of every other class, as it is where two classes
have one name. The number measured with such prompts means less than it seems:
that has to be said.
"""

import collections
import textwrap
from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np

from clip_jax.evaluation.dataset import Dataset
from clip_jax.evaluation.prompts import prompts_of
from clip_jax.evaluation.types import Encoder, Options
from clip_jax.tokenizers.base import Tokenizer

Prompts = Sequence[Sequence[str]]  # those of each class
_SHOWN = 5  # groups that are named
_LETTERS = 60  # of a name that is a caption


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
  """Counts prompts that are cut, and what cannot be told apart by prompts.

  Args:
    encoder: a `Model`, or another with a `tokenizer`; of one without, it is
      not known what it reads, and prompts are compared as they are.
    data: the name of the data.
    prompts: of each class, or of whatever else is told apart by them.
    names: of each, to be shown.
    what: these are called.
  Returns:
    At most two rows, 'warning': a line on what was cut, with those that this
    made the same; and one on those that are the same uncut.
  """
  every = [text for own in prompts for text in own]
  tokenizer = getattr(encoder, 'tokenizer', None)
  if isinstance(tokenizer, Tokenizer):
    limit = tokenizer.context_length
    cut = tokenizer.text_lengths(every) > limit
    read = [row.tobytes() for row in tokenizer(every)]
  else:
    limit, cut, read = 0, np.zeros(len(every), bool), every
  by_cutting, otherwise = [], []
  for group in _alike(prompts, read):
    was_cut = any(cut[part].any() for _, part in group)
    members = [i for i, _ in group]
    (by_cutting if was_cut else otherwise).append(members)
  rows = []
  if cut.any():
    line = (
      f'data {data!r}: {int(cut.sum()):,} of {len(every):,} prompts are longer '
      f'than the {limit} tokens that the model reads, and were cut'
    )
    if by_cutting:
      line += f': {_told(by_cutting, names, what)}'
    rows.append({'warning': f'{line}.'})
  if otherwise:
    line = f'data {data!r}: {_told(otherwise, names, what)}.'
    rows.append({'warning': line})
  return rows


def _alike(
  prompts: Prompts, read: Sequence[str | bytes]
) -> Iterable[list[tuple[int, slice]]]:
  """Groups of two or more whose prompts have the same mean.

  Args:
    read: what the model reads of each prompt, one class's after another's.
  Returns:
    Of each member its place among the classes, and those of its prompts.
  """
  groups = collections.defaultdict(list)
  start = 0
  for place, own in enumerate(prompts):
    part = slice(start, start + len(own))
    times = collections.Counter(read[part])
    shares = frozenset((x, Fraction(n, len(own))) for x, n in times.items())
    groups[shares].append((place, part))
    start = part.stop
  return [group for group in groups.values() if len(group) > 1]


def _told(
  groups: Sequence[Sequence[int]], names: Sequence[str], what: str
) -> str:
  """'4 of 9 classes cannot be told apart from others: crane (2 classes), …'."""
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
