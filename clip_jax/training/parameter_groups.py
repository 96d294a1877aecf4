"""The table that says how fast each parameter trains, or that it is frozen.

`optimizer.groups` has rows (pattern, factor of the learning rate) or (pattern,
factor, weight decay). For each parameter, and for each layer of one that is
stacked over the blocks of a Transformer, the first row that matches decides. A
factor of 0 freezes: there is no gradient, no moment and no weight decay.

A pattern is a path in the tree of parameters, and stands for all that is under
it; `*` stands for any characters, and `blocks[START:STOP]` or `blocks[INDEX]`
for some of the stacked blocks, counted as in Python:

    (('image/transformer/blocks[-2:]', 0.1), ('image', 0.0), ('*', 1.0))

trains the last two blocks of the image tower at a tenth of the rate, locks the
rest of it, and trains all else.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from clip_jax.errors import UsageError, first_few
from clip_jax.trees import flat, nested

_PATTERN = re.compile(
  r'(?P<before>[^\[\]]+?)'
  r'(?P<layers>(?<=blocks)\[(-?\d+|(-?\d+)?:(-?\d+)?)\])?'
  r'(?P<after>[^\[\]]*)'
)
# The path of a stack of blocks, whose arrays have the axis of layers first.
_STACK = re.compile(r'(?:.*/)?blocks(?=/)')
# The parameters of a tower that come before its first block.
_INPUTS = re.compile(
  r'(image|text)/((patch|class|position|token)_embedding|ln_pre|stem)(/|$)'
)
_RESNET_BLOCK = re.compile(r'image/stage(\d+)_(\d+)(?=/)')


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of `optimizer.groups`.

  Attributes:
    pattern: as described above.
    factor: of the learning rate; 0 freezes.
    weight_decay: None is `optimizer.weight_decay`.
  """

  pattern: str
  factor: float
  weight_decay: float | None = None

  def matches(self, name: str, layers: int | None) -> np.ndarray:
    """Returns whether a parameter matches, or which of its layers do, [L].

    Args:
      name: the parameter's path.
      layers: how many are stacked in it; None: it is no stack.
    """
    is_match, chosen_layers = self._matches_path(name), self._parts['layers']
    if layers is None:
      return np.array(is_match and not chosen_layers)
    if not chosen_layers:
      return np.full(layers, is_match)
    chosen = np.zeros(layers, bool)
    first, colon, last = chosen_layers[1:-1].partition(':')
    if colon:
      chosen[int(first or 0) : int(last) if last else None] = is_match
    elif -layers <= int(first) < layers:
      chosen[int(first)] = is_match
    return chosen

  def counts_in(self, name: str) -> bool:
    """Returns whether this is about some layers of a stacked parameter."""
    return bool(self._parts['layers']) and self._matches_path(name)

  @property
  def _parts(self) -> re.Match[str]:
    parts = _PATTERN.fullmatch(self.pattern)
    assert parts is not None  # `parse_rows` has looked
    return parts

  def _matches_path(self, name: str) -> bool:
    path = re.escape(self._parts['before'] + self._parts['after'])
    path = path.replace(r'\*', '.*')
    return re.fullmatch(f'{path}(/.*)?', name) is not None


def parse_rows(table: Sequence[Any]) -> tuple[Row, ...]:
  """Returns the rows of `optimizer.groups`.

  Raises:
    UsageError: a row is not as described above.
  """
  rows = []
  for given in table:
    row = tuple(given) if isinstance(given, (tuple, list)) else ()
    filled: tuple[Any, ...] = (*row, None, None, None)
    pattern, factor, decay = filled[:3]
    if len(row) not in (2, 3) or not _is_rate(factor):
      raise UsageError(
        f'optimizer.groups: {given!r} is no row: give (pattern, factor of the '
        'learning rate) or (pattern, factor, weight decay), as in '
        "('text', 0.1); a factor of 0 freezes."
      )
    if not isinstance(pattern, str) or not _PATTERN.fullmatch(pattern):
      raise UsageError(
        f'optimizer.groups: {pattern!r} is no pattern: give the path of '
        "parameters or modules, as 'text', '*/bias' or "
        "'image/transformer/blocks[-2:]'."
      )
    if decay is not None and not (_is_rate(decay) and factor):
      raise UsageError(
        f'optimizer.groups: the weight decay of {given!r} must be at least 0, '
        'and a frozen parameter (factor 0) has none: leave it out.'
      )
    decay = None if decay is None else float(decay)
    rows.append(Row(pattern, float(factor), decay))
  return tuple(rows)


def _is_rate(value: Any) -> bool:
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  return is_number and math.isfinite(value) and value >= 0


@dataclasses.dataclass(frozen=True)
class ParameterGroups:
  """The rows of `optimizer.groups`, to be applied to a model's parameters.

  Attributes:
    rows: without any, all parameters are trained alike.
    layer_decay: see `layer_factors`.
    weight_decay: of rows that have none of their own.
  """

  rows: tuple[Row, ...]
  layer_decay: float
  weight_decay: float

  def rates(self, params: Any) -> dict[str, np.ndarray]:
    """Returns the factor of the learning rate of each parameter, by path.

    Args:
      params: all parameters of the model, or their shapes.
    Returns:
      Scalars, and of a stack of blocks one factor for each layer, [L]; 0 is
      frozen.
    Raises:
      UsageError: a row decides nothing, or a parameter has no row.
    """
    factors = np.array([row.factor for row in self.rows] or [1.0])
    by_layer = layer_factors(flat(params), self.layer_decay)
    numbers = self._row_numbers(params)
    return {
      name: np.asarray(factors[n] * by_layer[name])
      for name, n in numbers.items()
    }

  def weight_decays(self, params: Any) -> dict[str, np.ndarray]:
    """Returns the weight decay of each parameter, alike.

    It is for the optimizer to say which parameters decay at all.
    """
    decays = np.array(
      [
        self.weight_decay if row.weight_decay is None else row.weight_decay
        for row in self.rows
      ]
      or [self.weight_decay]
    )
    numbers = self._row_numbers(params)
    return {name: np.asarray(decays[n]) for name, n in numbers.items()}

  def decay_and_scale(
    self, params: Any, mask: Callable[[Any], Any]
  ) -> Callable[[Any, Any], Any]:
    """Returns a function that decays weights, and scales their updates.

    Args:
      params: all parameters of the model, or their shapes.
      mask: of a tree of parameters, a tree that is True where one decays.
    Returns:
      A function of updates, and of the parameters that are updated: of stacks
      these are their trained layers.
    """
    rates, decays = self.rates(params), self.weight_decays(params)

    def by_layer(values: np.ndarray, name: str, leaf: Any) -> Any:
      """Returns a number, or one for each trained layer, [L, 1, …]."""
      values = values[rates[name] > 0]
      if (values == values[0]).all():
        return float(values[0])
      shape = (-1, *(1,) * (leaf.ndim - 1))
      return values.reshape(shape).astype(leaf.dtype)

    def apply(updates: Any, weights: Any) -> Any:
      leaves, weights, decaying = (
        flat(updates),
        flat(weights),
        flat(mask(weights)),
      )
      for name, leaf in leaves.items():
        if decaying[name]:
          leaf = leaf + by_layer(decays[name], name, leaf) * weights[name]
        leaves[name] = by_layer(rates[name], name, leaf) * leaf
      return nested(leaves)

    return apply

  def _row_numbers(self, params: Any) -> dict[str, np.ndarray]:
    """Returns which row decides, of each parameter and layer."""
    layers = _layers(flat(params))
    shapes = {name: () if n is None else (n,) for name, n in layers.items()}
    if not self.rows:
      return {name: np.zeros(shape, int) for name, shape in shapes.items()}
    numbers = {name: np.full(shape, -1) for name, shape in shapes.items()}
    for number, row in enumerate(self.rows):
      matched = {name: row.matches(name, layers[name]) for name in layers}
      decided = {
        name: own & (numbers[name] < 0) for name, own in matched.items()
      }
      if not any(own.any() for own in decided.values()):
        _refuse_row(row, matched)
      for name, own in decided.items():
        numbers[name] = np.where(own, number, numbers[name])
    _check_covered(numbers)
    if not any(row.factor for row in self.rows):
      raise UsageError(
        'optimizer.groups freezes all parameters: give what is to be trained a '
        'factor above 0.'
      )
    return numbers


def paths_matching(
  patterns: Sequence[str], leaves: Mapping[str, Any], field: str
) -> set[str]:
  """Returns the paths of the parameters that any of some patterns matches.

  Args:
    leaves: parameters, or their shapes, by path.
    field: the field of the config that has the patterns, for errors.
  Raises:
    UsageError: one matches no parameter, or not all layers of one.
  """
  layers, paths = _layers(leaves), set()
  for pattern in patterns:
    if not isinstance(pattern, str) or not _PATTERN.fullmatch(pattern):
      raise UsageError(
        f"{field}: {pattern!r} is no pattern: give paths, as in ('text',)."
      )
    row = Row(pattern, 1.0)
    matching = {
      name for name in leaves if row.matches(name, layers[name]).all()
    }
    if not matching:
      raise UsageError(
        f'{field}: {pattern!r} matches no parameter; there are '
        f'{_modules(leaves)}.'
      )
    paths |= matching
  return paths


def _layers(leaves: Mapping[str, Any]) -> dict[str, int | None]:
  """Returns how many layers are stacked in each parameter, by path."""
  return {
    name: leaf.shape[0] if stack_of(name) else None
    for name, leaf in leaves.items()
  }


def _modules(paths: Iterable[str]) -> str:
  return ', '.join(sorted({'/'.join(path.split('/')[:2]) for path in paths}))


def stack_of(name: str) -> str | None:
  """Returns the path of the stack of blocks that a parameter is in, or None."""
  match = _STACK.match(name)
  return match[0] if match else None


def _refuse_row(row: Row, matched: Mapping[str, np.ndarray]) -> None:
  """Refuses a row that decides nothing."""
  if any(own.any() for own in matched.values()):
    raise UsageError(
      f'optimizer.groups: all that {row.pattern!r} matches is decided by rows '
      'before it: move it up, or leave it out.'
    )
  stacks = {len(own) for name, own in matched.items() if row.counts_in(name)}
  if stacks:
    counts = ' or '.join(map(str, sorted(stacks)))
    raise UsageError(
      f'optimizer.groups: {row.pattern!r} matches none of the {counts} blocks.'
    )
  raise UsageError(
    f'optimizer.groups: {row.pattern!r} matches no parameter; there are '
    f'{_modules(matched)}.'
  )


def _check_covered(numbers: Mapping[str, np.ndarray]) -> None:
  """Refuses parameters, and layers of them, for which no row decides."""
  uncovered = []
  for name, own in sorted(numbers.items()):
    if (own < 0).all():
      uncovered.append(name)
    elif (own < 0).any():
      layer = int(np.argmax(own < 0))
      stack = stack_of(name) or ''
      uncovered.append(f'{stack}[{layer}]{name.removeprefix(stack)}')
  if uncovered:
    raise UsageError(
      f'optimizer.groups has no row for {first_few(uncovered)}: a last row '
      "('*', 1.0) trains the rest, and ('*', 0.0) freezes it."
    )


def layer_factors(
  leaves: Mapping[str, Any], layer_decay: float
) -> dict[str, np.ndarray]:
  """Returns factors of the learning rate that fall towards a tower's input.

  They are `layer_decay` to the power of 0 for what follows the last block, of 1
  for the last block, of the depth for the first one, and of one more for the
  embeddings and what else comes before it: BEiT's convention (arXiv 2106.08254,
  `optim_factory.py`), with which arXiv 2212.06138 fine-tunes CLIP. The depth of
  a ResNet is the number of its residual blocks.

  Args:
    leaves: all parameters of a model, or their shapes, by path.
  Returns:
    Of each a scalar, or one number for each layer of a stack, [L].
  """
  blocks = {
    m[0]: (int(m[1]), int(m[2])) for m in map(_RESNET_BLOCK.match, leaves) if m
  }
  below = {
    name: i for i, name in enumerate(sorted(blocks, key=blocks.__getitem__))
  }
  depths = {'image': len(below)}
  for name, leaf in leaves.items():
    if stack_of(name) == f'{(tower := name.split("/")[0])}/transformer/blocks':
      depths[tower] = leaf.shape[0]

  def from_top(name: str, leaf: Any) -> Any:
    tower = name.split('/')[0]
    if _INPUTS.match(name):
      return np.array(depths[tower] + 1)
    if match := _RESNET_BLOCK.match(name):
      return np.array(len(below) - below[match[0]])
    if stack_of(name) is None:
      return np.array(0)
    layers = leaf.shape[0] - np.arange(leaf.shape[0])
    return layers if tower in ('image', 'text') else np.zeros_like(layers)

  return {
    name: np.asarray(layer_decay ** from_top(name, leaf).astype(float))
    for name, leaf in leaves.items()
  }
