"""Two-way tables between our variables and the keys of other libraries.

A row names a path in our tree, the key that holds its array elsewhere, and the
form it has there; reading and writing both follow from it. The files that build
such tables say what a layout is for: `openai`, `hugging_face_keys`,
`big_vision`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from clip_jax.errors import FailureError
from clip_jax.interop.tensor_file import Tensors, empty_aligned, fill
from clip_jax.models.config import CLIPConfig
from clip_jax.models.counting import abstract_variables
from clip_jax.trees import flat, nested

_FLOATS = frozenset(
  map(np.dtype, (np.float64, np.float32, np.float16, ml_dtypes.bfloat16))
)
ALL = slice(None)  # for the `part` of a row


class Form(NamedTuple):
  """Two functions that turn an array into another layout's form, and back.

  They only move numbers.
  """

  to_theirs: Callable[[np.ndarray], np.ndarray]
  to_ours: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]  # and our shape


def _matrix(inputs: int) -> Form:
  """Returns the form [outputs, inputs] of ours [*inputs, *outputs]."""

  def to_theirs(x):
    rows = int(np.prod(x.shape[:inputs]))
    return x.reshape(rows, -1).T

  return Form(to_theirs, lambda x, shape: x.T.reshape(shape))


SAME = Form(lambda x: x, lambda x, shape: x.reshape(shape))
HEADS = Form(lambda x: x.reshape(-1), lambda x, shape: x.reshape(shape))
MATRIX = _matrix(1)
HEADS_MATRIX = _matrix(2)  # from heads and their width, as after attention
PATCH_MATRIX = _matrix(3)  # from the pixels of a patch, row by row
CONV = Form(  # ours HWIO, theirs OIHW
  lambda x: x.transpose(3, 2, 0, 1), lambda x, shape: x.transpose(2, 3, 1, 0)
)
COUNTER = Form(  # a torch counter has 64 bits
  lambda x: x.astype(np.int64),
  lambda x, shape: x.astype(np.int32).reshape(shape),
)


def within(axes: int) -> Form:
  """Returns the form of arrays with more axes, of length 1, at the front."""
  return Form(
    lambda x: x.reshape((1,) * axes + x.shape),
    lambda x, shape: x.reshape(shape),
  )


@dataclasses.dataclass(frozen=True)
class Row:
  """One key, or one for each layer where `theirs` has an '{i}'.

  Attributes:
    ours: a path in our variables, 'params/image/ln_post/scale'.
    theirs: their key.
    form: how the array looks there.
    part: which of our array (of one layer's) this key holds; () is all.
  """

  ours: str
  theirs: str
  form: Form = SAME
  part: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Constant:
  """A key that follows from the config, and may be left out.

  Attributes:
    theirs: their key.
    shape: of the array; axes of length 1 may be more or fewer.
    matches: whether an array of that shape holds what follows.
  """

  theirs: str
  shape: tuple[int, ...]
  matches: Callable[[np.ndarray], bool]


@dataclasses.dataclass(frozen=True)
class Table:
  """The keys of one layout for one config."""

  name: str
  rows: Sequence[Row]
  constants: Sequence[Constant] = ()


class _Entry(NamedTuple):
  """One key, and the index of its array within ours."""

  key: str
  row: Row
  index: tuple[Any, ...]


def absent_towers(table: Table, infos: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns the towers, 'image' or 'text', of which a file has not one key."""
  return tuple(
    tower
    for tower in ('image', 'text')
    if not any(
      _key_of_first_layer(row) in infos
      for row in table.rows
      if _tower_of(row.ours) == tower
    )
  )


def _tower_of(path: str) -> str | None:
  """Returns 'image' or 'text' for a path in our variables; None: neither."""
  name = path.split('/')[1]
  return next((x for x in ('image', 'text') if name.startswith(x)), None)


def _key_of_first_layer(row: Row) -> str:
  return row.theirs.format(i=0) if '{i}' in row.theirs else row.theirs


def read(
  tensors: Tensors,
  table: Table,
  config: CLIPConfig,
  dtype: np.dtype | None = None,
  absent: Sequence[str] = (),
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Returns a foreign file as our variables, key by key.

  At any time, a piece of one foreign tensor is in memory besides what is
  returned (all of one that does not lie in the file as it is needed). Nothing
  is read before all shapes are known to fit.

  Args:
    tensors: an open weight file.
    table: the layout of its keys.
    config: says our shapes.
    dtype: of floating-point arrays; None is that of the file.
    absent: towers that the file does not have; they are left out, and where
      the temperature is not there either, it is that of the config.
  Returns:
    Collections by name of numpy arrays, which are aligned so that a CPU device
    takes them without a copy; and what the file has of `table.constants`,
    which `write` wants to make it again.
  Raises:
    FailureError: keys are missing, not expected, or of another shape than the
      config says; all are named.
  """
  shapes = flat(abstract_variables(config))
  entries = _entries(table, shapes)
  infos = tensors.infos
  if absent:
    entries = [
      entry
      for entry in entries
      if _tower_of(entry.row.ours) not in absent
      and (_tower_of(entry.row.ours) or entry.key in infos)
    ]
  constants = [c for c in table.constants if c.theirs in infos]
  known = {entry.key for entry in entries} | {c.theirs for c in constants}
  what = f'{tensors.path} does not have the weights of its config'
  _refuse(
    f'{what} ({table.name})',
    missing=[entry.key for entry in entries if entry.key not in infos],
    unexpected=[key for key in infos if key not in known],
    wrong=[
      *_wrong_shapes(entries, shapes, infos),
      *_wrong_kinds(entries, shapes, infos),
      *_wrong_constants(constants, infos),
    ],
  )
  buffers = {c.theirs: np.array(tensors.read(c.theirs)) for c in constants}
  _refuse(
    f'{what} ({table.name})',
    wrong=[
      f'{c.theirs} (it follows from the config)'
      for c in constants
      if not c.matches(buffers[c.theirs].reshape(c.shape))
    ],
  )
  arrays: dict[str, np.ndarray] = {}
  for entry in entries:
    path = entry.row.ours
    if path not in arrays:
      arrays[path] = empty_aligned(
        shapes[path].shape, _dtype(path, entries, infos, dtype)
      )
    target = arrays[path][(*entry.index, ...)]  # a view, of a scalar too
    ours = entry.row.form.to_ours(tensors.read(entry.key), target.shape)
    fill(target, ours, tensors.release)
  if absent:
    arrays = {**_temperature(config), **arrays}
  return nested(arrays), buffers


def _temperature(config: CLIPConfig) -> dict[str, np.ndarray]:
  """Returns the initial temperature, for a tower that came alone."""
  scale = np.float32(math.log(config.initial_logit_scale))
  scalars = {'params/logit_scale': np.asarray(scale)}
  if config.initial_logit_bias is not None:
    bias = np.float32(config.initial_logit_bias)
    scalars['params/logit_bias'] = np.asarray(bias)
  return scalars


def write(
  variables: Mapping[str, Any],
  table: Table,
  config: CLIPConfig,
  constants: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> dict[str, np.ndarray]:
  """Returns our variables under the layout's keys, in their own dtypes.

  Args:
    variables: collections by name, of arrays.
    table: the layout to write.
    config: of the variables.
    constants: the second result of `read`, to be written as well.
  Raises:
    FailureError: the variables are not those of the config.
  """
  ours = {path: np.asarray(leaf) for path, leaf in flat(variables).items()}
  shapes = flat(abstract_variables(config))
  _refuse(
    'the variables are not those of their config',
    missing=[path for path in shapes if path not in ours],
    unexpected=[path for path in ours if path not in shapes],
    wrong=[
      f'{path} {ours[path].shape}, not {leaf.shape}'
      for path, leaf in shapes.items()
      if path in ours and ours[path].shape != leaf.shape
    ],
  )
  theirs = {
    entry.key: np.asarray(
      entry.row.form.to_theirs(ours[entry.row.ours][entry.index]), order='C'
    )
    for entry in _entries(table, shapes)
  }
  return {**theirs, **constants}


def _entries(table: Table, shapes: Mapping[str, Any]) -> list[_Entry]:
  """Returns the rows of a table, one for each key.

  Raises:
    KeyError: a row names a path that the config does not have, or the rows
      leave a path out: the table is wrong.
  """
  entries = []
  for row in table.rows:
    if '{i}' in row.theirs:
      layers = range(shapes[row.ours].shape[0])
      entries += [
        _Entry(row.theirs.format(i=i), row, (i, *row.part)) for i in layers
      ]
    else:
      entries.append(_Entry(row.theirs, row, row.part))
  left = shapes.keys() - {row.ours for row in table.rows}
  if left:
    raise KeyError(f'{table.name} has no row for {sorted(left)}')
  return entries


def _wrong_shapes(entries, shapes, infos) -> list[str]:
  wrong = []
  for entry in entries:
    if entry.key in infos:
      ours = _blank(shapes[entry.row.ours])[entry.index]
      expected = entry.row.form.to_theirs(ours).shape
      shape = infos[entry.key].shape
      # A scalar may have axes of length 1, as with open_clip's
      # `nonscalar_logit_scale`.
      if shape != expected and not (ours.ndim == 0 and _same_size(shape, ())):
        wrong.append(f'{entry.key} {list(shape)}, not {list(expected)}')
  return wrong


def _wrong_constants(constants, infos) -> list[str]:
  return [
    f'{c.theirs} {list(infos[c.theirs].shape)}, not {list(c.shape)}'
    for c in constants
    if not _same_size(infos[c.theirs].shape, c.shape)
  ]


def _same_size(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
  """Returns whether two shapes are the same but for axes of length 1."""
  return [n for n in shape if n != 1] == [n for n in wanted if n != 1]


def _wrong_kinds(entries, shapes, infos) -> list[str]:
  """Returns the weights that cannot be computed with, as quantised ones."""
  return [
    f'{e.key} (it holds {infos[e.key].dtype})'
    for e in entries
    if e.key in infos
    and shapes[e.row.ours].dtype.kind == 'f'
    and infos[e.key].dtype not in _FLOATS
  ]


def _blank(leaf: Any) -> np.ndarray:
  """Returns an array of the same shape that takes no memory."""
  return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


def _dtype(path: str, entries, infos, wanted: np.dtype | None) -> np.dtype:
  """Returns the dtype that holds all the keys of one of our arrays."""
  kinds = {infos[e.key].dtype for e in entries if e.row.ours == path}
  if kinds == {np.dtype(np.int64)}:
    return np.dtype(np.int32)
  if wanted is not None:
    return wanted
  return kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)


def _refuse(
  what: str,
  *,
  missing: Sequence[str] = (),
  unexpected: Sequence[str] = (),
  wrong: Sequence[str] = (),
) -> None:
  """Raises a FailureError that names all keys, where a list is not empty."""
  lists = [
    f'{kind}: {", ".join(sorted(names))}'
    for kind, names in (
      ('missing', missing),
      ('not expected', unexpected),
      ('of another shape, dtype or value', wrong),
    )
    if names
  ]
  if lists:
    raise FailureError(f'{what}. {"; ".join(lists)}.')
