"""The lines of a text file by index."""

import os

import pytest

from clip_jax.data.text_lines import TextLines
from clip_jax.errors import UsageError


def test_lines_that_are_not_blank(tmp_path):
  path = tmp_path / 'texts.txt'
  path.write_bytes('\ufeff one \r\n\n \t\nGröße\nlast'.encode())
  lines = TextLines(path)
  assert list(lines) == ['one', 'Größe', 'last']
  assert lines.numbers.tolist() == [1, 4, 5]
  assert (lines[2], lines[1], lines[-1]) == ('last', 'Größe', 'last')
  assert lines[1:] == ['Größe', 'last']
  assert list(lines) == ['one', 'Größe', 'last']  # again


def test_a_pipe_that_is_open_already_is_read_once():
  reading, writing = os.pipe()
  os.write(writing, b'one\ntwo\n')
  os.close(writing)
  lines = TextLines(f'/dev/fd/{reading}')  # as in --texts=<(zcat texts.gz)
  os.close(reading)
  assert (lines[1], lines[0]) == ('two', 'one')


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  for path in (tmp_path / 'pipe', '/dev/zero'):
    with pytest.raises(UsageError, match='a pipe or a device, not a file'):
      TextLines(path)


def test_other_files_are_one_line(tmp_path):
  path = tmp_path / 'texts.txt'
  with pytest.raises(UsageError, match=r'texts\.txt: no such file'):
    TextLines(path)
  path.write_bytes(b'one\n\xff\n')
  with pytest.raises(UsageError, match=r'line 2: not UTF-8 \(byte 0xff\)'):
    TextLines(path)


def test_a_line_without_an_end_is_not_read_into_memory(tmp_path):
  path = tmp_path / 'zeros.txt'
  path.write_text('a\n')
  with path.open('r+b') as file:
    file.truncate(2**33)  # a hole, which takes no space
  with pytest.raises(UsageError, match=r'zeros\.txt, line 2: over'):
    TextLines(path)
