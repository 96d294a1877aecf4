"""A table of standard models, through which robustness draws its line."""

import csv
import io
import math
from typing import NamedTuple

from clip_jax.errors import FailureError, UsageError
from clip_jax.files import read_text

COLUMNS = ('model', 'reference_accuracy', 'shift_accuracy')


class Baseline(NamedTuple):
  """A model and what it reaches, as fractions, 0 to 1.

  Attributes:
    model: its name.
    reference_accuracy: on the reference (ImageNet), of the classes that it
      shares with the shift.
    shift_accuracy: under the shift.
  """

  model: str
  reference_accuracy: float
  shift_accuracy: float


def read_baselines(path: str) -> list[Baseline]:
  """Reads a CSV file with a header and the columns `COLUMNS`, in any order.

  Raises:
    UsageError: it cannot be read, a column is missing, an accuracy is no
      fraction, or there are fewer models than the three of a line.
  """
  try:
    text = read_text(path)
  except FailureError as error:
    raise UsageError(f'baselines: {error}') from error
  try:
    return _parsed(text, path)
  except csv.Error as error:
    raise UsageError(f'baselines {path!r} is no CSV file: {error}.') from error


def _parsed(text: str, path: str) -> list[Baseline]:
  rows = csv.DictReader(io.StringIO(text))
  missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
  if missing:
    raise UsageError(
      f'baselines {path!r} has no column {missing[0]!r}: begin with the line '
      f'{",".join(COLUMNS)}.'
    )
  found = []
  for row in rows:
    where = f'baselines {path!r}, line {rows.line_num}'
    if not row['model']:
      raise UsageError(f'{where}: the model has no name.')
    accuracies = (_fraction(row[name], name, where) for name in COLUMNS[1:])
    found.append(Baseline(row['model'], *accuracies))
  if len(found) < 3:
    raise UsageError(
      f'baselines {path!r} has {len(found)} models: a line needs three or more.'
    )
  return found


def _fraction(text: str | None, name: str, where: str) -> float:
  try:
    value = float(text or '')
  except ValueError:
    value = math.nan
  if not 0 <= value <= 1:
    raise UsageError(f'{where}: {name} {text!r} is no fraction, 0 to 1.')
  return value
