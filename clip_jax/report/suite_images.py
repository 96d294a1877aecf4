"""Pictures for the page, fetched by their ids from the sources again."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from clip_jax.data.images import CorruptImageError
from clip_jax.data.sources import Source, open_source
from clip_jax.data.thumbnails import data_uri
from clip_jax.errors import FailureError, UsageError
from clip_jax.evaluation.dataset import Dataset
from clip_jax.report.suite_rows import of_task

CONFUSIONS = 8  # shown of a data set
COPIES = 8

# data set, split ('test' or 'train'), id -> data: URI
Pictures = Mapping[tuple[str, str, str], str]


def fetch_pictures(
  collected: Mapping[str, Any], open_dataset: Callable[[str], Dataset]
) -> Pictures:
  """Those that the page shows: of confusions, and of copies in training.

  What cannot be opened or read any more is left out.
  """
  found: dict[tuple[str, str, str], str] = {}
  for name, split, ids in _wanted(collected):
    try:
      source = _source(open_dataset(name), split, collected)
    except (UsageError, FailureError, OSError):
      continue
    if source is not None:
      found |= {
        (name, split, key): uri for key, uri in thumbnails(source, ids).items()
      }
  return found


def thumbnails(source: Source, ids: Collection[str]) -> dict[str, str]:
  """Id to data: URI, of the records that can be read."""
  left, found = set(ids), {}
  for index in range(len(source)):
    if not left:
      break
    key = source.id(index)
    if key not in left:
      continue
    left.remove(key)
    try:
      found[key] = data_uri(source[index]['image'])
    except CorruptImageError:
      continue
  return found


def shown_confusions(result: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
  """The most frequent of a zero_shot result."""
  return result['tables'].get('confusions', [])[:CONFUSIONS]


def shown_copies(result: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
  """The pairs of an overlap result that count as copies, some of each step."""
  pairs = [x for x in result['tables'].get('pairs', []) if x['overlapping']]
  step = max(1, len(pairs) // COPIES)
  return pairs[::step][:COPIES]


def _wanted(
  collected: Mapping[str, Any],
) -> Iterator[tuple[str, str, list[str]]]:
  for result in of_task(collected, 'zero_shot'):
    rows = shown_confusions(result)
    ids = [row['examples'][0] for row in rows if row['examples']]
    ids += [row['of_given'] for row in rows if row.get('of_given')]
    if ids:
      yield result['dataset'], 'test', ids
  for result in of_task(collected, 'overlap'):
    rows = shown_copies(result)
    if rows:
      yield result['dataset'], 'test', [row['test'] for row in rows]
      yield result['dataset'], 'train', [row['train'] for row in rows]


def _source(
  dataset: Dataset, split: str, collected: Mapping[str, Any]
) -> Source | None:
  if split == 'test':
    return dataset.test.source
  if collected['overlap_with']:
    return open_source(collected['overlap_with'])
  return dataset.train.source if dataset.train else None
