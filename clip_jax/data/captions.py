"""Chooses the caption of a training example among those of its record."""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence

import numpy as np

from clip_jax.data.sources import Source
from clip_jax.data.sources.base import Record, sample_indices
from clip_jax.errors import UsageError

# Records whose captions are looked at before a run, to say what passes.
_SAMPLE = 1_000


@dataclasses.dataclass(frozen=True)
class CaptionRule:
  """Filters the captions of records, and weights their columns.

  Attributes:
    weights: how often a caption comes from each of the columns that were asked
      for, relative to the others; of a record that lacks one, among those that
      it has. (): each caption is as likely.
    min_characters, max_characters: of a caption; a maximum of 0 is none.
    min_words, max_words: likewise; words are what white space separates.
    drop: a regular expression; a caption in which it matches is left out.
    templates: prompts with a slot '{}' for a caption that has passed, each as
      likely (FLYP, arXiv 2212.00638, where captions are names of classes). ():
      captions are as they are.
  """

  weights: tuple[float, ...] = ()
  min_characters: int = 0
  max_characters: int = 0
  min_words: int = 0
  max_words: int = 0
  drop: str = ''
  templates: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    """Refuses impossible values.

    Raises:
      UsageError: the message names the field of the config.
    """
    for unit in ('characters', 'words'):
      least, most = getattr(self, f'min_{unit}'), getattr(self, f'max_{unit}')
      if least < 0 or most < 0 or 0 < most < least:
        raise UsageError(
          f'data.filter: min_{unit}={least} and max_{unit}={most} leave no '
          'caption: use numbers from 0, where a maximum of 0 is none.'
        )
    try:
      _compile(self.drop)
    except re.error as error:
      raise UsageError(
        f'data.filter.drop={self.drop!r} is no regular expression: {error}.'
      ) from error
    for template in self.templates:
      if not isinstance(template, str) or '{}' not in template:
        raise UsageError(
          f'data.templates: {template!r} has no slot: write {{}} where the '
          "caption goes, as in 'a photo of a {}.'"
        )
    numbers = np.array(self.weights, float)
    if self.weights and not (
      np.isfinite(numbers).all() and (numbers >= 0).all() and numbers.any()
    ):
      raise UsageError(
        f'data.caption_weights={self.weights}: use numbers from 0, of which '
        'one is above.'
      )

  def check_columns(self, captions: Sequence[str]) -> None:
    """Refuses weights of another number than the columns'.

    Raises:
      UsageError: it says both numbers.
    """
    if self.weights and len(self.weights) != len(captions):
      raise UsageError(
        f'data.caption_weights={self.weights} for data.captions='
        f'{tuple(captions)}: use one weight for each.'
      )

  @property
  def filters(self) -> bool:
    """True if a filter is set, so that a caption can be left out."""
    return self._filter != CaptionRule()

  @property
  def _filter(self) -> 'CaptionRule':
    return dataclasses.replace(self, weights=(), templates=())

  def passes(self, text: str) -> bool:
    """Returns whether a caption passes the filter."""
    characters, words = len(text), len(text.split())
    return (
      self.min_characters <= characters <= (self.max_characters or characters)
      and self.min_words <= words <= (self.max_words or words)
      and not (self.drop and _compile(self.drop).search(text))
    )

  def choose(self, record: Record) -> tuple[list[str], list[float] | None]:
    """Returns the captions of a record that pass, and how likely each is.

    With templates, each caption stands in each of them. The second is None
    where all are as likely.
    """
    texts, likely = self._choose(record)
    if not self.templates:
      return texts, likely
    prompts = [t.replace('{}', text) for text in texts for t in self.templates]
    if likely is None:
      return prompts, None
    count = len(self.templates)
    return prompts, [x / count for x in likely for _ in self.templates]

  def _choose(self, record: Record) -> tuple[list[str], list[float] | None]:
    texts = record['caption']
    columns = record.get('columns') or [0] * len(texts)
    pairs = [
      (text, column)
      for text, column in zip(texts, columns, strict=True)
      if self.passes(text) and (not self.weights or self.weights[column] > 0)
    ]
    texts = [text for text, _ in pairs]
    if not self.weights:
      return texts, None
    counts = collections.Counter(column for _, column in pairs)
    each = [self.weights[column] / counts[column] for _, column in pairs]
    total = sum(each)
    return texts, [x / total for x in each]

  def describe(self, sources: Iterable[Source]) -> list[str]:
    """Returns lines about how many captions of each source pass the filter.

    Raises:
      UsageError: of a source whose captions were all looked at, none does.
    """
    lines = []
    for source in sources if self.filters else ():
      indices = sample_indices(len(source), _SAMPLE)
      texts = [text for i in indices for text in source.captions(i)]
      count = sum(map(self.passes, texts))
      if not count and len(indices) == len(source):
        raise UsageError(
          f'data {source.spec!r}: none of its {len(texts):,} captions passes '
          f'data.filter ({self.text()}).'
        )
      sampled = ' of a sample' if len(indices) < len(source) else ''
      lines.append(
        f'data {source.spec!r}: {count:,} of {len(texts):,} captions{sampled} '
        f'pass data.filter ({self.text()})'
      )
    return lines

  def text(self) -> str:
    """Returns the filter in short, for messages."""
    fields = dataclasses.asdict(self._filter)
    return ', '.join(f'{name}={x!r}' for name, x in fields.items() if x)


@functools.cache
def _compile(pattern: str) -> re.Pattern[str]:
  return re.compile(pattern)
