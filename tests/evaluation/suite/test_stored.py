"""Stored results that are not as they were written are made again."""

import json
import os

import pytest

from clip_jax.evaluation.suite import stored
from clip_jax.evaluation.suite.plan import Pair

PAIR = Pair('digits', 'zero_shot')


@pytest.fixture
def path(tmp_path):
  stored.write(tmp_path, stored.Result(PAIR, {'seed': 0}, {'top1': 0.5}))
  return stored.path_of(tmp_path, PAIR)


def read(folder):
  return stored.read(folder, PAIR, {'seed': 0})


def test_a_written_result_is_read_back(tmp_path, path):
  assert read(tmp_path).metrics == {'top1': 0.5}


def test_names_that_are_not_utf8_are_read_back(tmp_path):
  records = [{'id': 'caf\udce9.png'}]
  stored.write(tmp_path, stored.Result(PAIR, {'seed': 0}, records=records))
  assert read(tmp_path).records == records


@pytest.mark.parametrize(
  'change',
  [
    {'pair': None}, {'pair': {}}, {'pair': {'dataset': 1, 'task': 'x'}},
    {'metrics': []}, {'metrics': {'top1': 'half'}}, {'records': [1]},
    {'corrupt': {'a': 1}}, {'tables': {'x': {}}}, {'seconds': None},
    {'more': 1}, {'error': 3},
  ],
)  # fmt: skip
def test_fields_of_another_form(tmp_path, path, change):
  value = json.loads(path.read_text()) | change
  del value['sha256']
  path.write_text(json.dumps(value | {'sha256': stored._digest(value)}))
  assert read(tmp_path) is None


@pytest.mark.parametrize('text', ['', '[]', 'null', '[' * 100_000, '\udcff'])
def test_files_of_another_form(tmp_path, path, text):
  path.write_bytes(text.encode('utf-8', 'surrogateescape'))
  assert read(tmp_path) is None


def test_a_pipe_is_not_waited_for(tmp_path, path):
  path.unlink()
  os.mkfifo(path)
  assert read(tmp_path) is None


def test_a_result_whose_file_is_damaged_is_measured_again(tmp_path, path):
  path.write_text(path.read_text().replace('0.5', '0.6'), 'utf-8')
  assert read(tmp_path) is None
