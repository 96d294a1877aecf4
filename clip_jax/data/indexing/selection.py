"""Records of some kinds, numbered without a list of them."""

from collections.abc import Collection, Sequence

import numpy as np

from clip_jax.data.indexing.tar_index import TarIndex
from clip_jax.errors import FailureError


class Selection(Sequence[int]):
  """The indices of the records of some kinds, in order.

  The numbers in each shard are known; only the shard of an index that is asked
  for is looked through.
  """

  def __init__(self, index: TarIndex, kinds: Collection[int]):
    self._index = index
    self._is_selected = np.isin(np.arange(256), list(kinds))
    self._ends = np.cumsum(index.counts(kinds))
    self._starts = np.cumsum(index.records) - index.records

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else 0

  def __getitem__(self, number: int) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
    """Returns the index of a record by its number among those selected.

    Raises:
      IndexError: there are fewer.
      FailureError: the index contradicts itself.
    """
    if not 0 <= number < len(self):
      raise IndexError(number)
    shard = int(np.searchsorted(self._ends, number, side='right'))
    kinds = self._index.shard_entries(shard)['kind']
    chosen = np.flatnonzero(self._is_selected[kinds])
    before = int(self._ends[shard - 1]) if shard else 0
    if number - before >= len(chosen):
      raise FailureError(
        f'{self._index.path(shard)}: its index has fewer records of a kind '
        'than it says; make it again.'
      )
    return int(self._starts[shard] + chosen[number - before])
