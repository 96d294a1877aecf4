"""Images as they stand in a page, and where they are found."""

import io

from PIL import Image

from clip_jax.report.images import SIDE, data_uri, data_uris, find_records
from tests.evaluation.fakes import ListSource
from tests.inference.fakes import FakeSource


class Counting(FakeSource):
  """Counts how often a record's id is asked for."""

  ids_asked = 0

  def id(self, index):
    self.ids_asked += 1
    return super().id(index)


def test_a_row_is_found_soon_after_its_own_place():
  source = Counting(100_000)
  wanted = {0: '0.png', 41_000: '41003.png'}  # three were left out before it
  assert find_records(source, wanted) == {0: 0, 41_000: 41_003}
  assert source.ids_asked == 5


def test_elsewhere_it_is_looked_for_in_the_whole_source():
  wanted = {5000: '7.png', 3: '3.png', 9999: 'nosuch.png'}
  assert find_records(FakeSource(10), wanted) == {5000: 7, 3: 3}


def test_one_id_may_stand_in_several_rows():
  assert find_records(FakeSource(10), {50: '7.png', 60: '7.png'}) == {
    50: 7, 60: 7
  }  # fmt: skip


def _png(size):
  encoded = io.BytesIO()
  Image.new('RGB', size, (37, 90, 200)).save(encoded, 'PNG')
  return encoded.getvalue()


def test_small_files_are_embedded_as_they_are_and_large_ones_shrunk():
  assert 'image/png' in data_uri(_png((40, 30)))
  large = data_uri(_png((2000, 1000)))
  assert large.startswith('data:image/jpeg;base64,') and len(large) < 10_000
  assert SIDE < 2000


def test_images_are_found_by_their_ids():
  source = ListSource((10, 20, 30))
  uris = data_uris(source, ['image/2', 'nosuch'])
  assert list(uris) == ['image/2']
  assert uris['image/2'].startswith('data:image/png;base64,')
