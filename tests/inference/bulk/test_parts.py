"""Files of parts that are not as they were written."""

import json
import os

import numpy as np
import pytest

from clip_jax.errors import FailureError, UsageError
from clip_jax.inference.bulk.folder import PartsFolder
from clip_jax.inference.bulk.parts import (
  Notes,
  Part,
  Plan,
  read_notes,
  read_rows,
  write_part,
)

PART = Part(0, 'image', 0, 2)
NOTES = {
  'ids': ['a', 'b'], 'captions': ['', ''], 'digests': '00' * 32, 'corrupt': {},
  'truncated': 0,
}  # fmt: skip
PLACE = {'number': 0, 'kind': 'image', 'start': 0, 'stop': 2}


def write(folder, notes, vectors=None):
  vectors = np.ones((2, 3), np.float32) if vectors is None else vectors
  text = notes if isinstance(notes, bytes) else json.dumps(notes).encode()
  np.savez(
    folder / PART.file_name, vectors=vectors,
    notes=np.frombuffer(text, np.uint8),
  )  # fmt: skip


def test_what_was_written_is_read(tmp_path):
  write_part(tmp_path, PART, Notes(**NOTES), np.ones((2, 3), np.float32))
  assert read_rows(tmp_path, PART).ids == ['a', 'b']
  write(tmp_path, {**NOTES, **PLACE})
  assert read_rows(tmp_path, PART).captions == ['', '']


@pytest.mark.parametrize(
  'change',
  [
    {'number': 1}, {'ids': 'ab'}, {'ids': [1, 2]}, {'ids': ['a']},
    {'captions': None}, {'digests': 'xy'}, {'digests': '00'},
    {'corrupt': {'a': 1}}, {'truncated': '1'}, {'more': 1}, {'truncated': True},
  ],
)  # fmt: skip
def test_notes_of_another_form_are_damage(tmp_path, change):
  write(tmp_path, {**NOTES, **PLACE, **change})
  with pytest.raises(FailureError, match=r'npz is damaged .* remove it'):
    read_notes(tmp_path, PART)


@pytest.mark.parametrize('notes', [b'[]', b'\xff', b'[' * 100_000, b'3', b''])
def test_so_are_notes_that_are_no_object(tmp_path, notes):
  write(tmp_path, notes)
  with pytest.raises(FailureError, match='is damaged'):
    read_notes(tmp_path, PART)


@pytest.mark.parametrize(
  'vectors', [np.ones(2, np.float32), np.ones((2, 3)), np.ones((3, 3), 'f4')]
)
def test_so_are_vectors_of_another_shape(tmp_path, vectors):
  write(tmp_path, {**NOTES, **PLACE}, vectors)
  with pytest.raises(FailureError, match='is damaged'):
    read_rows(tmp_path, PART)


def test_a_pipe_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / PART.file_name)
  with pytest.raises(FailureError, match='a pipe or a device'):
    read_notes(tmp_path, PART)


@pytest.mark.parametrize(
  'job',
  [
    '[]', '{}', '{"identity": {}}', '{"identity": [], "plan": {}}',
    '{"identity": {}, "plan": {"images": 2, "texts": 0, "part_rows": 0}}',
    '{"identity": {}, "plan": {"images": 1e18, "texts": 0, "part_rows": 1}}',
    '{"identity": {}, "plan": {"images": 99, "texts": 0, "part_rows": 1}}',
    '{"identity": {"model": 3, "step": []}, "plan": {}}',
    '[' * 100_000,
  ],
)  # fmt: skip
def test_a_damaged_job_is_refused(tmp_path, job):
  folder = PartsFolder(tmp_path / 'e.npz')
  folder.path.mkdir()
  (folder.path / 'job.json').write_text(job)
  (folder.path / PART.file_name).touch()
  with (
    pytest.raises((FailureError, UsageError), match='parts'),
    folder.begun({}, Plan(2, 0, 2)),
  ):
    pass
