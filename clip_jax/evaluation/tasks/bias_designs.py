"""Sets of names that a model must choose among: the label designs of section 7.

A design has kinds, such as 'crime-related', each with names. Where a name is
'{groups}', the names of the data set's own classes stand in, so that one design
serves any attribute. As a file:

  {"source": "where the names are from (optional)",
   "own names": {"group": ["{groups}"]},
   "with thieves": {"group": ["{groups}"], "crime-related": ["thief"]}}
"""

import functools
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from clip_jax.errors import FailureError, UsageError
from clip_jax.files import read_json

GROUPS = '{groups}'
_SOURCE = 'source'  # of the names, in a sentence: the key that is no design
_SHIPPED = 'bias_designs.json'

Designs = Mapping[str, Mapping[str, Sequence[str]]]  # design -> kind -> names


class Candidates(NamedTuple):
  """The C names of a design, among the names of all designs.

  Attributes:
    columns: int64 [C], of `all_names`.
    names: [C].
    kinds: the names of the K kinds.
    kind_of: int64 [C], which kind each name is.
    has_groups: whether the groups' own names are among them.
  """

  columns: Int[np.ndarray, ' C']
  names: tuple[str, ...]
  kinds: tuple[str, ...]
  kind_of: Int[np.ndarray, ' C']
  has_groups: bool


@functools.cache
def shipped_designs() -> Designs:
  """Returns the paper's designs, and the same with the groups' own names."""
  file = importlib.resources.files('clip_jax.evaluation.tasks') / _SHIPPED
  return checked(json.loads(file.read_text('utf-8')), _SHIPPED)


def read_designs(path: Path) -> Designs:
  """Returns the designs of a user's file.

  Raises:
    UsageError: it is missing, or no JSON, or no designs; see `checked`.
  """
  try:
    content = read_json(path)
  except FailureError as error:
    raise UsageError(
      f'designs: {str(error).rstrip(".")}; use a JSON file of '
      '{"design": {"kind": ["name"]}}.'
    ) from error
  return checked(content, str(path))


def checked(content: Any, where: str) -> Designs:
  """Returns the designs of a JSON document, once they are checked.

  Raises:
    UsageError: something is of another form, or empty, or there is no design.
  """
  if not isinstance(content, Mapping):
    raise UsageError(f'designs {where}: use an object, {{"design": {{…}}}}.')
  designs = {
    name: _design(name, kinds, where)
    for name, kinds in content.items()
    if name != _SOURCE or not isinstance(kinds, str)
  }
  if not designs:
    raise UsageError(f'designs {where}: there is no design in it.')
  return designs


def added_names(designs: Designs) -> tuple[str, ...]:
  """Returns all names but the groups' own, each once, in order."""
  names = (
    name
    for kinds in designs.values()
    for own in kinds.values()
    for name in own
    if name != GROUPS
  )
  return tuple(dict.fromkeys(names))


def candidates(
  designs: Designs, groups: Sequence[str]
) -> dict[str, Candidates]:
  """Returns each design's names, as columns of `[*groups, *added_names]`.

  Raises:
    UsageError: a name is twice in a design, or it has fewer than two.
  """
  columns = {
    name: len(groups) + i for i, name in enumerate(added_names(designs))
  }
  return {
    name: _candidates(name, kinds, groups, columns)
    for name, kinds in designs.items()
  }


def _design(name: str, kinds: Any, where: str) -> dict[str, tuple[str, ...]]:
  if not isinstance(kinds, Mapping) or not kinds:
    raise UsageError(
      f'designs {where}, {name!r}: use an object of kinds, '
      '{"kind": ["name"]}.'
    )
  for kind, names in kinds.items():
    good = isinstance(names, Sequence) and not isinstance(names, str)
    if not good or not names:
      raise UsageError(
        f'designs {where}, {name!r}, {kind!r}: use a list of names.'
      )
    for one in names:
      if not isinstance(one, str) or not one.strip():
        raise UsageError(
          f'designs {where}, {name!r}, {kind!r}: {one!r} is no name.'
        )
  return {kind: tuple(names) for kind, names in kinds.items()}


def _candidates(
  design: str,
  kinds: Mapping[str, Sequence[str]],
  groups: Sequence[str],
  column_of: Mapping[str, int],
) -> Candidates:
  columns: list[int] = []
  names: list[str] = []
  kind_of: list[int] = []
  for number, own in enumerate(kinds.values()):
    for name in own:
      new = list(groups) if name == GROUPS else [name]
      columns += range(len(groups)) if name == GROUPS else [column_of[name]]
      names += new
      kind_of += [number] * len(new)
  _check_different(design, kinds, groups)
  if len(names) < 2:
    raise UsageError(f'design {design!r} has one name: use two or more.')
  return Candidates(
    np.array(columns, np.int64),
    tuple(names),
    tuple(kinds),
    np.array(kind_of, np.int64),
    any(GROUPS in own for own in kinds.values()),
  )


def _check_different(
  design: str, kinds: Mapping[str, Sequence[str]], groups: Sequence[str]
) -> None:
  """Refuses an added name that is there twice; groups may share one (crane)."""
  every = [name for own in kinds.values() for name in own]
  for i, name in enumerate(every):
    if name in every[:i]:
      raise UsageError(
        f'design {design!r} has the name {name!r} twice: use it once.'
      )
    if GROUPS in every and name in groups:
      raise UsageError(
        f'design {design!r} adds the name {name!r}, which is a class of the '
        'data set, too: leave it out, with --designs=FILE.'
      )
