"""A run directory in an object store, for which fsspec's memory stands in."""

import pytest

from clip_jax.checkpoints.manager import Checkpoints
from clip_jax.errors import FailureError, UsageError
from clip_jax.training import loop
from clip_jax.training import workdir as module
from clip_jax.training.workdir import open_workdir
from tests.object_store import empty_store
from tests.tiny import tiny_config, write_pairs


@pytest.fixture
def store(monkeypatch):
  monkeypatch.setattr(module.time, 'sleep', lambda seconds: None)
  with empty_store(monkeypatch) as store:
    yield store


def contents(store):
  return {
    name.partition('bucket/')[2]: file.getvalue()
    for name, file in store.store.items()
  }


def test_a_path_is_its_own_folder(tmp_path):
  with open_workdir(tmp_path / 'run') as workdir:
    assert workdir.folder == tmp_path / 'run'
    workdir.publish()
  assert not (tmp_path / 'run').exists()


def test_files_are_copied_when_they_have_changed(store):
  with open_workdir('gs://bucket/run') as workdir:
    (workdir.folder / 'tensorboard').mkdir(parents=True)
    (workdir.folder / '.lock').write_text('')
    (workdir.folder / 'metrics.jsonl').write_text('one\n')
    (workdir.folder / 'tensorboard' / 'events').write_bytes(b'\0')
    assert not store.store
    workdir.publish()
    expected = {'run/metrics.jsonl': b'one\n', 'run/tensorboard/events': b'\0'}
    assert contents(store) == expected
    store.store.clear()
    (workdir.folder / 'metrics.jsonl').write_text('one\ntwo\n')
  assert contents(store) == {'run/metrics.jsonl': b'one\ntwo\n'}


def test_a_run_that_goes_on_finds_what_it_left(store):
  with open_workdir('gs://bucket/run') as workdir:
    (workdir.folder / 'tensorboard').mkdir(parents=True)
    (workdir.folder / 'config.json').write_text('{}')
    (workdir.folder / 'tensorboard' / 'events').write_bytes(b'\0')
  with open_workdir('gs://bucket/run/') as workdir:
    assert (workdir.folder / 'config.json').read_text() == '{}'
    assert (workdir.folder / 'tensorboard' / 'events').read_bytes() == b'\0'
    assert workdir.folder.name == 'run'
    assert workdir.path('report.html') == 'gs://bucket/run/report.html'


def test_a_failure_that_passes_is_tried_again(store, capsys):
  with open_workdir('gs://bucket/run') as workdir:
    workdir.folder.mkdir()
    (workdir.folder / 'config.json').write_text('{}')
    store.failures = [OSError('503 try later'), OSError('reset')]
  assert contents(store) == {'run/config.json': b'{}'}
  assert capsys.readouterr().err.count('trying again in') == 2


def test_one_that_does_not_is_said(store):
  store.failures = [OSError('503 try later')] * 20
  with (
    pytest.raises(FailureError, match=r'config.json could not be .*try later'),
    open_workdir('gs://bucket/run') as workdir,
  ):
    workdir.folder.mkdir()
    (workdir.folder / 'config.json').write_text('{}')
  assert len(store.failures) == 14


@pytest.mark.slow
def test_a_run_in_a_store_leaves_all_of_its_files_there(
  store, monkeypatch, tmp_path, capsys
):
  """All but the checkpoints, which TensorStore writes in its own way."""
  monkeypatch.setattr(
    loop,
    'Checkpoints',
    lambda workdir, **options: Checkpoints(tmp_path / 'checkpoints', **options),
  )
  config = tiny_config()
  config.data.train = write_pairs(tmp_path / 'pictures')
  outcome = loop.train(config, 'gs://bucket/run')
  assert outcome.report == 'gs://bucket/run/report.html'
  result = contents(store)
  assert {'run/config.json', 'run/metrics.jsonl', 'run/report.html'} < set(
    result
  )
  assert any(name.startswith('run/tensorboard/events') for name in result)
  assert result['run/metrics.jsonl'].count(b'train/loss') == 6
  assert b'--model=gs://bucket/run' in result['run/report.html']
  loop.train(config, 'gs://bucket/run')
  assert 'gs://bucket/run is trained already' in capsys.readouterr().err
  config.seed = 1
  with pytest.raises(UsageError, match=r'gs://bucket/run holds a run with'):
    loop.train(config, 'gs://bucket/run')


def test_another_kind_of_store_is_refused():
  with (
    pytest.raises(UsageError, match='begins with gs:// or s3://'),
    open_workdir('ftp://host/run'),
  ):
    pass
