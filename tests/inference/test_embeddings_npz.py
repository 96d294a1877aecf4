"""Tables of embeddings as .npz, which numpy reads too."""

import numpy as np

from clip_jax.inference.embeddings import open_embeddings
from clip_jax.inference.embeddings_table import Entry
from tests.inference.tables import unit_rows, write_table

IDS = ['a.png', 'Größe/ü.png', '😀']
CAPTIONS = ['', 'two\nlines', 'x' * 3000]


def test_npz_is_what_numpy_reads_without_pickles(tmp_path):
  rows = unit_rows(0, 3)
  path = write_table(
    tmp_path / 'e.npz', rows, ids=IDS, captions=CAPTIONS, block=2
  )
  with np.load(path) as file:
    assert file['ids'].tolist() == IDS
    assert file['kinds'].tolist() == ['image'] * 3
    assert file['captions'].tolist() == CAPTIONS
    assert file['embeddings'].dtype == np.float32
    np.testing.assert_array_equal(file['embeddings'], rows)


def test_a_file_of_numpy_savez_serves(tmp_path):
  rows = unit_rows(0, 2)
  np.savez(
    tmp_path / 'e.npz', embeddings=rows, ids=['a', 'b'],
    kinds=['image', 'text'], captions=['', 'b'],
  )  # fmt: skip
  with open_embeddings(tmp_path / 'e.npz') as table:
    assert table.about == {}
    assert table.entries([1])[1] == Entry('b', 'text', 'b')
    np.testing.assert_array_equal(next(table.chunks()).vectors, rows)


def test_one_long_text_does_not_make_a_large_npz(tmp_path):
  rows = unit_rows(0, 300)
  names = [*(f'{i}.png' for i in range(299)), 'Größe' * 30_000]
  texts = [*(f'caf\u00e9 \udce9 {i}' for i in range(298)), '', 'ü' * 1_000_000]
  path = write_table(
    tmp_path / 'e.npz', rows, ids=names, captions=texts, block=70
  )
  assert path.stat().st_size < 10e6  # 1.8 GB if all were as wide
  with np.load(path, allow_pickle=False) as file:
    assert 'captions' not in file.files  # over a GiB for numpy
    assert file['ids'].tolist() == names
    data, ends = file['captions_utf8'].tobytes(), file['captions_offsets']
    for row in (0, 298, 299):
      text = data[ends[row] : ends[row + 1]].decode('utf-8', 'surrogatepass')
      assert text == texts[row]
  with open_embeddings(path) as table:
    result = table.entries([0, 298, 299])
    assert [result[i].caption for i in result] == [texts[0], '', texts[299]]
    assert result[299].id == names[299]
    assert [x for part in table.contents() for x in part.ids] == names


def test_usual_captions_are_as_numpy_has_them(tmp_path):
  texts = ['x' * 2000, *['a short caption'] * 3999]
  path = write_table(tmp_path / 'e.npz', unit_rows(0, 4000), captions=texts)
  with np.load(path, allow_pickle=False) as file:
    assert set(file.files) == {
      'about', 'ids', 'kinds', 'captions', 'digests', 'embeddings'
    }  # fmt: skip
    assert file['captions'].tolist() == texts
