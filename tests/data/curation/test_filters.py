"""Filters of single pairs, and lists of ids as DataComp publishes them."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.data.curation import filters
from clip_jax.errors import FailureError

NAN = float('nan')


def dropped(reasons):
  return {name: np.flatnonzero(x).tolist() for name, x in reasons.items()}


def test_sizes():
  reasons = filters.size_reasons(
    np.array([100.0, 99, 100, 300, 301, NAN, 0]),
    np.array([100.0, 200, 99, 100, 100, 5, 100]),
    100,
    3.0,
  )
  assert dropped(reasons) == {
    'size not known': [5, 6],
    'a side below 100 pixels': [1, 2, 5, 6],
    'an aspect ratio above 3': [4, 6],
  }


def test_numbers_may_be_written_as_texts():
  batch = pa.record_batch({'width': ['100', None, '3.5'], 'name': list('abc')})
  assert filters.numbers_of(batch, 'width')[[0, 2]].tolist() == [100, 3.5]
  with pytest.raises(FailureError, match="'name' holds string, not numbers"):
    filters.numbers_of(batch, 'name')


def test_scores():
  reasons = filters.score_reasons(np.array([0.3, 0.28, 0.2, NAN]), 0.28)
  assert dropped(reasons) == {'no score': [3], 'a score below 0.28': [2]}


def test_lengths():
  texts = ['', 'a', 'a dog', 'a dog in a park']
  assert dropped(filters.length_reasons(texts, 3, 10, 2)) == {
    'no text': [0],
    'under 3 characters': [0, 1],
    'over 10 characters': [3],
    'under 2 words': [0, 1],
  }
  assert dropped(filters.length_reasons(texts, 0, 0, 0)) == {'no text': [0]}


def test_languages():
  reasons = filters.language_reasons(['en', 'de', 'fr', 'de'], ['en', 'fr'])
  assert dropped(reasons) == {'language de': [1, 3]}


@given(st.lists(st.text(min_size=1, max_size=3).filter(str.strip), min_size=1))
def test_ids_of_a_text_file(tmp_path_factory, names):
  names = [x.strip() for x in names if len(x.splitlines()) == 1] or ['x']
  folder = tmp_path_factory.mktemp('ids')
  (folder / 'ids.txt').write_text('\n'.join(names), newline='\n')
  out = folder / 'ids.npy'
  filters.write_id_list([str(folder / 'ids.txt')], out)
  reasons = filters.id_reasons([*names, 'not there'], str(out))
  assert dropped(reasons) == {'not in the list of ids': [len(names)]}


def test_ids_of_datacomp(tmp_path):
  """A .npy file of pairs of 64 bits is of ids of 32 hexadecimal digits."""
  ids = [f'{x:032x}' for x in (3, 2**64 + 1, 2**127, 2**128 - 1)]
  halves = [(int(x[:16], 16), int(x[16:], 16)) for x in ids]
  np.save(tmp_path / 'uids.npy', np.array(halves[::-1], filters.ID_DTYPE))
  (tmp_path / 'more.txt').write_text('plain\n')
  out = tmp_path / 'ids.npy'
  paths = [str(tmp_path / 'uids.npy'), str(tmp_path / 'more.txt')]
  assert filters.write_id_list(paths, out) == 5
  reasons = filters.id_reasons([*ids, f'{4:032x}', 'plain', None], str(out))
  assert dropped(reasons) == {'not in the list of ids': [4, 6]}


def test_wrong_lists_of_ids_are_refused(tmp_path):
  np.save(tmp_path / 'x.npy', np.zeros(3))
  with pytest.raises(FailureError, match='a list of float64 of shape'):
    filters.write_id_list([str(tmp_path / 'x.npy')], tmp_path / 'out.npy')
  np.save(tmp_path / 'o.npy', np.array([{}]), allow_pickle=True)
  with pytest.raises(FailureError, match='allow_pickle'):
    filters.write_id_list([str(tmp_path / 'o.npy')], tmp_path / 'out.npy')
