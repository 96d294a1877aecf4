"""TensorBoard shows the numbers of a run, also of one that was resumed."""

import errno
import glob
import os
import struct

import pytest
from tensorboardX.proto import event_pb2

from clip_jax.training.tensorboard import TensorBoard


def _events(workdir):
  """All events, in TensorBoard's order: files by name."""
  events = []
  for path in sorted(glob.glob(f'{workdir}/tensorboard/events.*')):
    with open(path, 'rb') as file:
      while header := file.read(12):
        (length,) = struct.unpack('Q', header[:8])
        events.append(event_pb2.Event.FromString(file.read(length)))
        file.read(4)
  return events


def _scalars(workdir):
  """What TensorBoard shows: a restart at T hides the steps >= T before it."""
  shown = []
  for event in _events(workdir):
    if event.HasField('session_log'):
      shown = [item for item in shown if item[0] < event.step]
    shown += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
  return shown


def test_numbers_are_on_disk_as_soon_as_they_are_written(tmp_path):
  writer = TensorBoard(tmp_path)
  writer.write(1, {'train/loss': 1.0})
  assert _scalars(tmp_path) == [(1, 'train/loss', 1.0)]
  writer.close()
  writer.close()


def test_a_resumed_run_hides_what_came_after_its_checkpoint(tmp_path):
  writer = TensorBoard(tmp_path)
  for step in (10, 20, 30, 40):
    writer.write(step, {'a': float(step)})
  writer.close()
  writer = TensorBoard(tmp_path)
  writer.truncate_after(20)
  writer.write(30, {'a': -30.0})
  writer.close()
  assert _scalars(tmp_path) == [
    (10, 'a', 10.0),
    (20, 'a', 20.0),
    (30, 'a', -30.0),
  ]


def test_a_run_without_numbers_has_no_file(tmp_path):
  writer = TensorBoard(tmp_path)
  writer.truncate_after(0)
  writer.close()
  assert not (tmp_path / 'tensorboard').exists()


def test_starts_within_one_second_keep_their_own_event_files(tmp_path):
  for step in range(3):
    writer = TensorBoard(tmp_path)
    writer.write(step, {'a': 1.0})
    writer.close()
  assert [step for step, _, _ in _scalars(tmp_path)] == [0, 1, 2]


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='Linux only')
def test_a_full_disk_is_an_error_of_the_call(tmp_path):
  writer = TensorBoard(tmp_path)
  writer.write(1, {'a': 1.0})
  with open('/dev/full', 'wb', buffering=0) as full:
    writer._events._py_recordio_writer._writer = full
    with pytest.raises(OSError) as caught:
      writer.write(2, {'a': 2.0})
  assert caught.value.errno == errno.ENOSPC
