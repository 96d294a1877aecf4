"""Prompts that are longer than what a model reads, and so are cut.

A text tower sees the beginning of such a text. Where a class's name stood in
the rest, its prompt is that of every other class, and the number measured with
it means nothing: that has to be said.
"""

import collections
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Bool

from clip_jax.evaluation.dataset import Dataset
from clip_jax.evaluation.encoder import Encoder, Options
from clip_jax.evaluation.prompts import prompts_of
from clip_jax.tokenizers.base import Tokenizer

Prompts = Sequence[Sequence[str]]  # those of each class


def cut_warnings(
  encoder: Encoder,
  dataset: Dataset,
  options: Options,
  templates: Sequence[str] | None = None,
) -> list[dict[str, str]]:
  """The table 'warnings' of an evaluation with `classifier_for`'s prompts.

  Args:
    encoder, dataset, options, templates: see `classifier_for`.
  Returns:
    See `warn_of_cuts`.
  """
  chosen = templates or options.templates_for(dataset)
  return warn_of_cuts(encoder, dataset.name, prompts_of(dataset, chosen))


def warn_of_cuts(
  encoder: Encoder, name: str, prompts: Prompts, what: str = 'classes'
) -> list[dict[str, str]]:
  """Counts what is cut, and what is left the same as another by that.

  Args:
    encoder: a `Model`, or another with a `tokenizer`; of one without, it is
      not known what it reads, and nothing is said.
    name: of the data.
    prompts: of each class, or of whatever else is told apart by them.
    what: these are called.
  Returns:
    One row, 'warning', where a prompt is cut; else none.
  """
  tokenizer = getattr(encoder, 'tokenizer', None)
  if not isinstance(tokenizer, Tokenizer):
    return []
  every = [text for own in prompts for text in own]
  cut = tokenizer.text_lengths(every) > tokenizer.context_length
  if not cut.any():
    return []
  line = (
    f'data {name!r}: {int(cut.sum()):,} of {len(every):,} prompts are longer '
    f'than the {tokenizer.context_length} tokens that the model reads, and '
    'were cut'
  )
  alike = _count_alike(tokenizer, prompts, cut)
  if alike:
    line += f': {alike:,} of {len(prompts):,} {what} cannot be told apart'
  return [{'warning': f'{line}.'}]


def _count_alike(
  tokenizer: Tokenizer, prompts: Prompts, cut: Bool[np.ndarray, ' P']
) -> int:
  """Classes whose prompts have the same mean as another's.

  Those that share their names, uncut, are the data set's own affair.
  """
  rows = tokenizer([text for own in prompts for text in own])
  cut_of: dict[frozenset[tuple[bytes, Fraction]], list[bool]]
  cut_of = collections.defaultdict(list)
  start = 0
  for own in prompts:
    part = slice(start, start + len(own))
    times = collections.Counter(row.tobytes() for row in rows[part])
    shares = frozenset((row, Fraction(n, len(own))) for row, n in times.items())
    cut_of[shares].append(bool(cut[part].any()))
    start = part.stop
  return sum(len(x) for x in cut_of.values() if len(x) > 1 and any(x))
