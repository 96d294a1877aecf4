"""Checkpoints: whole or not there, read in part, and never misread."""

import dataclasses
import errno
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.checkpoints.manager import Checkpoints, HostCopy
from clip_jax.checkpoints.reading import load_variables, steps_of
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.errors import FailureError, UsageError
from clip_jax.models.description import Description
from clip_jax.parallel import peer_failures
from clip_jax.parallel.mesh import make_mesh
from clip_jax.training.state import TrainState
from tests.tiny_run import tiny_description, tiny_params, write_run
from tests.waiting import until

DESCRIPTION = Description(
  model=tiny_description().model,
  tokenizer={'kind': 'clip', 'context_length': 8},
  preprocessing=Preprocessing(image_size=16, resize_mode='squash'),
)


def state_at(step, size=1000):
  return TrainState(
    step=jnp.int32(step),
    params={'w': jnp.arange(size, dtype=jnp.float32) + step},
    opt_state=({'mu': jnp.ones(size, jnp.bfloat16)}, jnp.int32(step)),
  )


def model_at(step, size=1000):
  """A state with the arrays of the model that DESCRIPTION is of."""
  params = jax.tree.map(lambda x: jnp.asarray(x + step), tiny_params())
  return dataclasses.replace(state_at(step, size), params=params)


def save_all(workdir, steps, metric='', values=(), keep=3, make_state=state_at):
  checkpoints = Checkpoints(workdir, keep=keep, best_metric=metric)
  for i, step in enumerate(steps):
    metrics = {metric: values[i]} if metric else {}
    checkpoints.save(make_state(step), DESCRIPTION, seed=7, metrics=metrics)
  checkpoints.close()


def restore(
  workdir, description=DESCRIPTION, seed=7, size=1000, make_state=state_at
):
  state = make_state(0, size)
  checkpoints = Checkpoints(workdir, keep=3)
  restored = checkpoints.restore(state, description, seed=seed)
  checkpoints.close()
  return restored


def damage(directory):
  """Cuts every data file of a checkpoint's parameters in half."""
  files = [p for p in (directory / 'params').rglob('*') if p.is_file()]
  assert files
  for path in files:
    os.truncate(path, path.stat().st_size // 2)


def test_what_is_saved_is_restored_to_the_bit(tmp_path):
  save_all(tmp_path, [5])
  restored = restore(tmp_path)
  expected = state_at(5)
  jax.tree.map(
    np.testing.assert_array_equal,
    (restored.params, restored.opt_state),
    (expected.params, expected.opt_state),
  )
  assert restored.opt_state[0]['mu'].dtype == jnp.bfloat16
  assert restored.step == 5


def test_the_parameters_are_read_alone(tmp_path):
  save_all(tmp_path, [5, 9], make_state=model_at)
  shutil.rmtree(tmp_path / 'checkpoints' / '9' / 'opt_state')
  variables, description, step = load_variables(tmp_path)
  jax.tree.map(
    np.testing.assert_array_equal, variables['params'], model_at(9).params
  )
  assert description == DESCRIPTION
  assert step == 9
  _, _, step = load_variables(tmp_path / 'checkpoints' / '5')
  assert step == 5


def test_the_newest_and_the_best_are_kept(tmp_path):
  save_all(
    tmp_path,
    [1, 2, 3, 4, 5, 6],
    metric='eval/zero_shot/top1',
    values=[0.1, 0.9, 0.3, 0.2, 0.4, 0.5],
    keep=2,
  )
  assert steps_of(tmp_path) == [6, 5, 2]


@pytest.mark.parametrize(
  'metric',
  [
    'eval/loss/loss',
    'eval/zero_shot/ece',
    'eval/bias/own/largest_difference',
  ],
)
def test_the_best_loss_or_error_is_the_lowest(tmp_path, metric):
  save_all(
    tmp_path,
    [1, 2, 3, 4],
    metric=metric,
    values=[3.0, 1.5, 2.0, 4.0],
    keep=1,
  )
  assert steps_of(tmp_path) == [4, 2]


def test_the_best_is_kept_over_a_restart(tmp_path):
  metric = 'eval/zero_shot/top1'
  save_all(tmp_path, [1, 2, 3], metric, [0.1, 0.9, 0.3], keep=1)
  assert steps_of(tmp_path) == [3, 2]
  save_all(tmp_path, [4, 5], metric, [0.2, 0.4], keep=1)
  assert steps_of(tmp_path) == [5, 2]


def test_another_metric_takes_over(tmp_path):
  save_all(tmp_path, [1, 2], 'eval/loss/loss', [0.1, 0.9], keep=1)
  save_all(tmp_path, [3, 4, 5], 'eval/zero_shot/top1', [0.2, 0.4, 0.3], keep=1)
  assert steps_of(tmp_path) == [5, 4]


def test_a_metric_that_is_not_measured_is_said_and_the_step_is_saved(tmp_path):
  checkpoints = Checkpoints(tmp_path, keep=3, best_metric='eval/zero_shot/top_')
  metrics = {'eval/zero_shot/top1': 0.5, 'eval/zero_shot/top1_chance': 0.1}
  checkpoints.save(state_at(1), DESCRIPTION, seed=7)  # it was not evaluated
  with pytest.raises(UsageError) as caught:
    checkpoints.save(state_at(2), DESCRIPTION, seed=7, metrics=metrics)
  assert str(caught.value) == (
    "checkpoint.best_metric='eval/zero_shot/top_' is not among the metrics of "
    "step 2, which is saved: use one of eval/zero_shot/top1, '' (none)."
  )
  assert steps_of(tmp_path) == [2, 1]
  checkpoints.close()


def test_only_the_newest_are_kept_without_a_metric(tmp_path):
  save_all(tmp_path, [1, 2, 3, 4], keep=2)
  assert steps_of(tmp_path) == [4, 3]


def test_a_step_is_written_once(tmp_path):
  save_all(tmp_path, [5, 5])
  assert steps_of(tmp_path) == [5]


def test_no_checkpoint_is_no_error_for_a_new_run(tmp_path):
  assert restore(tmp_path) is None


def test_a_damaged_newest_gives_way_to_the_one_before(tmp_path, capsys):
  save_all(tmp_path, [5, 9], make_state=model_at)
  damage(tmp_path / 'checkpoints' / '9')
  _, _, step = load_variables(tmp_path)
  assert step == 5
  restored = restore(tmp_path, make_state=model_at)
  assert restored.step == 5
  assert 'checkpoints/9 cannot be read' in capsys.readouterr().err
  # The damaged one is set aside, so that step 9 can be written again.
  assert steps_of(tmp_path) == [5]
  assert (tmp_path / 'checkpoints' / '9.damaged').is_dir()
  save_all(tmp_path, [9], make_state=model_at)
  assert restore(tmp_path, make_state=model_at).step == 9


@pytest.fixture
def fail_reading(monkeypatch):
  """Returns a function that makes the next reads fail with an error."""
  read = ocp.CheckpointManager.restore

  def fail(times, error):
    left = [error] * times

    def restore(self, step, args):
      if 'params' in args and left:
        raise left.pop()
      return read(self, step, args=args)

    monkeypatch.setattr(ocp.CheckpointManager, 'restore', restore)

  return fail


def test_a_read_that_fails_once_is_tried_again(tmp_path, capsys, fail_reading):
  save_all(tmp_path, (5, 9))
  fail_reading(1, ValueError('UNAVAILABLE: Error reading gs://b/9'))
  assert restore(tmp_path).step == 9
  assert not capsys.readouterr().err


def wrapped(error):
  outer = FailureError('9/params/manifest.ocdbt: wrong.')
  outer.__cause__ = error
  return outer


@pytest.mark.parametrize(
  'error',
  [
    ValueError('PERMISSION_DENIED: Error opening "zarr" driver: gs://b/9'),
    OSError(errno.EMFILE, 'Too many open files'),
    wrapped(OSError(errno.ESTALE, 'Stale file handle')),
    ConnectionResetError(),
  ],
  ids=lambda error: type(error).__name__,
)
def test_what_the_system_keeps_from_being_read_is_not_damaged(
  tmp_path, fail_reading, error
):
  save_all(tmp_path, (5, 9))
  fail_reading(2, error)
  with pytest.raises(FailureError, match=r'9 cannot be read now'):
    restore(tmp_path)
  assert steps_of(tmp_path) == [9, 5]
  assert restore(tmp_path).step == 9


def test_a_half_written_one_is_not_seen(tmp_path):
  save_all(tmp_path, [5], make_state=model_at)
  root = tmp_path / 'checkpoints'
  half = root / '9.orbax-checkpoint-tmp-123'
  shutil.copytree(root / '5', half)
  (half / '_CHECKPOINT_METADATA').unlink()
  assert load_variables(tmp_path)[2] == 5
  assert restore(tmp_path, make_state=model_at).step == 5
  until(lambda: not half.exists())  # Orbax removes it in a thread of its own


def test_a_missing_description_is_damage(tmp_path, capsys):
  save_all(tmp_path, [5, 9])
  shutil.rmtree(tmp_path / 'checkpoints' / '9' / 'description')
  assert restore(tmp_path).step == 5
  assert 'checkpoints/9 cannot be read' in capsys.readouterr().err


@pytest.mark.parametrize(
  'other',
  [
    {'seed': 8},
    {'description': dataclasses.replace(DESCRIPTION, tokenizer={'kind': 'x'})},
    {
      'description': dataclasses.replace(
        DESCRIPTION, preprocessing=Preprocessing(image_size=16)
      ),
      'size': 500,  # another model: other shapes
    },
  ],
)
def test_another_runs_checkpoint_is_refused_and_left_alone(tmp_path, other):
  save_all(tmp_path, [5, 9])
  with pytest.raises(UsageError, match='9 was written with another'):
    restore(tmp_path, **other)
  assert steps_of(tmp_path) == [9, 5]
  assert restore(tmp_path).step == 9


def test_none_readable_is_a_failure(tmp_path):
  save_all(tmp_path, [5])
  damage(tmp_path / 'checkpoints' / '5')
  for _ in range(2):  # it does not become a new run when it is asked again
    with pytest.raises(FailureError, match='none of the 1 checkpoints'):
      restore(tmp_path)
  with pytest.raises(FailureError, match=r'no checkpoint in .* can be read'):
    load_variables(tmp_path)


@pytest.mark.parametrize('kind', ['missing', 'empty'])
def test_no_model_is_one_clear_line(tmp_path, kind):
  path = tmp_path / kind
  if kind == 'empty':
    path.mkdir()
  with pytest.raises(UsageError, match='expected the workdir of a run'):
    load_variables(path)


def test_the_description_is_plain_json(tmp_path):
  again = json.loads(json.dumps(DESCRIPTION.to_dict()))
  assert Description.from_dict(again) == DESCRIPTION


def test_the_disk_is_not_blamed_before_others_are_asked_for(
  tmp_path, monkeypatch
):
  # What a checkpoint met that two wrote together, when one was killed.
  lost = ValueError('UNKNOWN: Gloo AllGather failed: Connection closed by peer')
  save_all(tmp_path, [1])
  asked = []
  checkpoints = Checkpoints(tmp_path, keep=3)
  monkeypatch.setattr(peer_failures, 'wait_if_peer_lost', asked.append)

  def fail(*_, **__):
    raise lost

  for name, call in (
    ('save', lambda: checkpoints.save(state_at(2), DESCRIPTION, seed=7)),
    ('wait_until_finished', checkpoints.wait),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(checkpoints._manager, name, fail)
      with pytest.raises(FailureError, match='could not be written'):
        call()
  with monkeypatch.context() as patch:
    patch.setattr(checkpoints._manager, 'restore', fail)
    with pytest.raises(FailureError, match='cannot be read now'):
      checkpoints.restore(state_at(0), DESCRIPTION, seed=7)
  assert asked == [lost] * 4


@pytest.mark.parametrize('when', ['before the write', 'during the write'])
def test_a_full_disk_is_said_and_the_one_before_stays(
  small_disk, monkeypatch, when
):
  workdir = small_disk / 'run'
  save_all(workdir, [1])
  checkpoints = Checkpoints(workdir, keep=3)
  if when == 'during the write':  # as where somebody else fills the disk
    monkeypatch.setattr(Checkpoints, '_check_space', lambda *_: None)
  noise = jax.random.normal(jax.random.key(0), (1_000_000,))
  state = TrainState(jnp.int32(2), {'w': noise}, {'mu': noise})
  with pytest.raises(FailureError, match=r'disk is full.*goes on from step 1'):
    checkpoints.save(state, DESCRIPTION, seed=7)
    checkpoints.wait()
  assert steps_of(workdir) == [1]
  assert restore(workdir).step == 1


@pytest.mark.parametrize('name', ['²', '٣', '-1', '7x', ' '])
def test_a_folder_that_is_no_number_is_no_step(tmp_path, name):
  (tmp_path / 'checkpoints' / name / 'params').mkdir(parents=True)
  (tmp_path / 'checkpoints' / '7').mkdir()
  assert steps_of(tmp_path) == [7]


@pytest.mark.parametrize('name', ['description', 'params'])
def test_a_pipe_in_a_checkpoint_is_not_waited_for(tmp_path, capsys, name):
  run = write_run(tmp_path / 'run', (3, 7))
  files = (run / 'checkpoints' / '7' / name).rglob('*')
  file = next(path for path in sorted(files) if path.is_file())
  file.unlink()
  os.mkfifo(file)
  assert load_variables(run)[2] == 3
  assert 'a pipe or a device' in capsys.readouterr().err


def test_a_vast_manifest_is_not_read_into_memory(tmp_path, capsys):
  run = write_run(tmp_path / 'run', (3, 7))
  for path in (run / 'checkpoints' / '7').rglob('manifest.ocdbt'):
    os.truncate(path, 2**33)
  assert load_variables(run)[2] == 3
  assert 'over the limit' in capsys.readouterr().err


def sharded_tree(value):
  sharding = NamedSharding(make_mesh(4, 2, 1), P('fsdp'))
  return {
    'w': jax.device_put(jnp.full((8, 3), value, jnp.float32), sharding),
    'count': jnp.int32(value),
  }


def pointers(arrays):
  return [
    shard.data.unsafe_buffer_pointer()
    for leaf in jax.tree.leaves(arrays)
    for shard in leaf.addressable_shards
  ]


def test_a_copy_is_equal_elsewhere_and_as_sharded():
  original = sharded_tree(1)
  copy = HostCopy().copy(original)
  jax.tree.map(np.testing.assert_array_equal, copy, original)
  assert copy['w'].sharding == original['w'].sharding
  assert not set(pointers(copy)) & set(pointers(original))


def test_the_next_copy_takes_the_same_memory():
  copies = HostCopy()
  first = pointers(copies.copy(sharded_tree(1)))
  second = copies.copy(sharded_tree(2))
  assert pointers(second) == first
  np.testing.assert_array_equal(second['w'], np.full((8, 3), 2.0))


def test_a_copy_that_is_still_read_is_left_alone():
  copies = HostCopy()
  shard = copies.copy(sharded_tree(1))['w'].addressable_shards[0].data
  held = np.asarray(shard)
  copies.copy(sharded_tree(2))
  np.testing.assert_array_equal(held, np.full_like(held, 1.0))
