"""Stores results, one a file: DIR/results/DATASET.TASK.json.

Each has its numbers and everything that they depend on. A result of the same
conditions is not computed again, so that a killed suite can be continued.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from clip_jax.errors import FailureError
from clip_jax.evaluation.suite.plan import Pair
from clip_jax.files import (
  check_fields,
  read_fields,
  read_json,
  to_utf8,
  write_bytes,
)

_FOLDER = 'results'


@dataclasses.dataclass(frozen=True)
class Result:
  """The outcome of one evaluator on one data set.

  Attributes:
    pair: the evaluator and the data set.
    depends: everything that the numbers depend on, JSON-able.
    metrics, records, corrupt, tables, chance: of the `Evaluation`.
    seconds: how long it took.
    error: the reason in one line, where it failed; the rest is then empty.
  """

  pair: Pair
  depends: dict[str, Any]
  metrics: dict[str, float] = dataclasses.field(default_factory=dict)
  records: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  corrupt: dict[str, str] = dataclasses.field(default_factory=dict)
  tables: dict[str, list[dict[str, Any]]] = dataclasses.field(
    default_factory=dict
  )
  chance: dict[str, float] = dataclasses.field(default_factory=dict)
  seconds: float = 0.0
  error: str | None = None


def path_of(folder: Path, pair: Pair) -> Path:
  """Returns the file of the result of a pair."""
  return folder / _FOLDER / f'{pair.dataset}.{pair.task}.json'


def write(folder: Path, result: Result) -> None:
  """Stores a result; its file is replaced as a whole."""
  value = dataclasses.asdict(result)
  value['sha256'] = _digest(value)
  path = path_of(folder, result.pair)
  write_bytes(path, to_utf8(dump(value)), make_folder=True)


def read(folder: Path, pair: Pair, depends: dict[str, Any]) -> Result | None:
  """Returns the stored result of the same conditions, if there is one.

  A stored failure does not count, so that it is tried again.
  """
  try:
    path = path_of(folder, pair)
    value = check_fields(path, read_json(path), {'pair': dict, 'sha256': str})
    if value.pop('sha256') != _digest(value):
      return None  # damaged: a row of its tables could be of any shape
    value['pair'] = read_fields(path, value['pair'], Pair)
    result = read_fields(path, value, Result)
  except FailureError:
    return None  # missing, or written by another version of this program
  if result.error is not None or result.depends != as_json(depends):
    return None
  return result


def _digest(value: dict[str, Any]) -> str:
  return hashlib.sha256(dump(value).encode('utf-8', 'replace')).hexdigest()


def as_json(value: Any) -> Any:
  """Returns a value as it is read back from JSON: tuples become lists."""
  return json.loads(dump(value))


def dump(value: Any, indent: int | None = None) -> str:
  """Returns the JSON text of plain values and of numpy's scalars."""
  return json.dumps(value, ensure_ascii=False, indent=indent, default=_plain)


def _plain(value: Any) -> Any:
  if hasattr(value, 'tolist'):
    return value.tolist()
  spec = getattr(value, 'spec', None)  # of a source
  return spec if isinstance(spec, str) else repr(value)
