"""JSON objects of other people's files."""

import pytest

from clip_jax.errors import FailureError
from clip_jax.json_files import read_object, to_bytes


def test_an_object_comes_back(tmp_path):
  path = tmp_path / 'a.json'
  content = {'name': 'Größe', 'sizes': [1, 2]}
  path.write_bytes(to_bytes(content))
  assert read_object(path) == content
  assert 'Größe' in path.read_text('utf-8')


def test_a_missing_file_is_empty(tmp_path):
  assert read_object(tmp_path / 'none.json') == {}


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'{"a": ', r'a\.json is not JSON'),
    (b'\xff\xfe', r'a\.json is not JSON'),
    (b'[' * 100_000, r'a\.json is not JSON'),
    (b'[1]', r'a\.json holds no JSON object'),
  ],
)
def test_what_is_no_object_is_refused_in_one_line(tmp_path, content, message):
  path = tmp_path / 'a.json'
  path.write_bytes(content)
  with pytest.raises(FailureError, match=message) as caught:
    read_object(path)
  assert '\n' not in str(caught.value)
