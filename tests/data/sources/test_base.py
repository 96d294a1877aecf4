import pytest

from clip_jax.data.sources.base import (
  SAMPLE_RECORDS,
  Record,
  Source,
  sample_indices,
)


class Large(Source):
  """A source of 10^9 records that counts how many of them are looked at."""

  spec = 'large'

  def __init__(self, captions: list[str]):
    self._captions = captions
    self.looked_at = 0

  def __len__(self) -> int:
    return 10**9

  def id(self, index: int) -> str:
    return str(index)

  def captions(self, index: int) -> list[str]:
    self.looked_at += 1
    return self._captions

  def __getitem__(self, index: int) -> Record:
    raise NotImplementedError


@pytest.mark.parametrize(
  ('length', 'most', 'wanted'),
  [
    (0, 0, []),
    (3, 3, [0, 1, 2]),
    (3, 5, [0, 1, 2]),
    (10, 4, [0, 3, 6, 9]),
    (9, 2, [0, 5]),
  ],
)
def test_indices_are_all_or_evenly_spaced(length, most, wanted):
  assert list(sample_indices(length, most)) == wanted


def test_no_more_than_a_sample_tells_whether_a_large_source_has_captions():
  without = Large([])
  assert not without.has_captions()
  assert without.looked_at == SAMPLE_RECORDS
  captioned = Large(['a cat', ''])
  assert captioned.has_captions()
  assert captioned.looked_at == 1


def test_texts_may_be_those_of_a_sample():
  source = Large(['a', 'b'])
  assert list(source.texts(most_records=2)) == ['a', 'b', 'a', 'b']
