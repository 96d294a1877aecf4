"""Counts what each step takes in and drops, with a few samples of it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from clip_jax.data.curation.hashing import mix
from clip_jax.data.curation.rows import POSITION

SAMPLES = 8  # kept of each reason
_SHOWN = 300  # characters of a sample's text


class Funnel:
  """The counts of one task; JSON has them."""

  def __init__(self, text: str, url: str | None):
    """Begins at zero.

    Args:
      text, url: columns that a sample shows.
    """
    self._text, self._url = text, url
    self._steps: dict[str, dict[str, Any]] = {}

  def keep(
    self,
    step: str,
    batch: pa.RecordBatch,
    reasons: Mapping[str, Bool[np.ndarray, ' N']],
  ) -> pa.RecordBatch:
    """Returns the rows that a step keeps, and counts the others.

    Args:
      reasons: why rows are dropped, and which; the first of a row counts.
    """
    counts = self._counts(step)
    counts['in'] += batch.num_rows
    dropped = np.zeros(batch.num_rows, bool)
    for reason, rows in reasons.items():
      rows = rows & ~dropped
      dropped |= rows
      counts['dropped'][reason] = counts['dropped'].get(reason, 0) + int(
        rows.sum()
      )
      self._draw_samples(counts, reason, batch, np.flatnonzero(rows))
    if not dropped.any():
      return batch
    return batch.filter(pa.array(~dropped))

  def begin(self, step: str) -> None:
    """Names a step that may see no row."""
    self._counts(step)

  def add_kept(self, step: str, batch: pa.RecordBatch) -> None:
    """Draws samples of the rows that a step kept."""
    rows = np.arange(batch.num_rows)
    self._draw_samples(self._counts(step), 'kept', batch, rows)

  def _counts(self, step: str) -> dict[str, Any]:
    return self._steps.setdefault(step, {'in': 0, 'dropped': {}, 'samples': {}})

  def _draw_samples(
    self,
    counts: dict[str, Any],
    reason: str,
    batch: pa.RecordBatch,
    rows: np.ndarray,
  ) -> None:
    if not len(rows):
      return
    positions = batch.column(POSITION).to_numpy().astype(np.uint64)[rows]
    hashes = mix(positions)
    first = np.argsort(hashes)[:SAMPLES]
    kept = counts['samples'].setdefault(reason, [])
    if len(kept) == SAMPLES and int(hashes[first[0]]) > kept[-1]['hash']:
      return
    names = [self._text] + ([self._url] if self._url else [])
    some = batch.select(names).take(pa.array(rows[first]))
    values = [some.column(i).to_pylist() for i in range(len(names))]
    for i, number in enumerate(hashes[first].tolist()):
      url = values[1][i] if self._url else None
      kept.append(
        {
          'hash': number,
          'text': str(values[0][i] or '')[:_SHOWN],
          'url': url[:_SHOWN] if isinstance(url, str) else '',
        }
      )
    kept.sort(key=lambda sample: sample['hash'])
    del kept[SAMPLES:]

  def as_counts(self) -> dict[str, Any]:
    """Returns the counts of all steps, in the order of their first rows."""
    return {'steps': self._steps}


def merge(counts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Returns the steps of all tasks together.

  Args:
    counts: of `Funnel.as_counts`.
  Returns:
    For each step its `step`, rows `in` and `out`, `dropped` by reason, and
    `samples` by reason; what comes in is what is dropped and what goes out.
  """
  steps: dict[str, dict[str, Any]] = {}
  for task in counts:
    for name, part in task['steps'].items():
      step = steps.setdefault(
        name, {'step': name, 'in': 0, 'out': 0, 'dropped': {}, 'samples': {}}
      )
      step['in'] += part['in']
      for reason, number in part['dropped'].items():
        step['dropped'][reason] = step['dropped'].get(reason, 0) + number
      for reason, samples in part['samples'].items():
        both = step['samples'].get(reason, []) + samples
        both.sort(key=lambda sample: sample['hash'])
        step['samples'][reason] = both[:SAMPLES]
  for step in steps.values():
    step['out'] = step['in'] - sum(step['dropped'].values())
  return list(steps.values())


def without_samples(
  steps: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
  """Returns steps with their numbers alone."""
  return [
    {name: value for name, value in step.items() if name != 'samples'}
    for step in steps
  ]
