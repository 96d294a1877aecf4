"""Stages of tasks: the same files whatever runs them, and after every kill."""

import json
import os
import pathlib
import pickle
import signal
import subprocess
import sys

import pytest

from clip_jax.data import decoding
from clip_jax.data.prepare import local_engine
from clip_jax.data.prepare.engine import Engine, run_stage
from clip_jax.errors import FailureError, UsageError
from tests.data.prepare import stages
from tests.waiting import until

ENGINES = [
  Engine('local', 1),
  Engine('local', 2),
  pytest.param(Engine('beam', 1), marks=pytest.mark.engines),
  pytest.param(Engine('beam', 2), marks=pytest.mark.engines),
  pytest.param(Engine('ray', 1), marks=pytest.mark.engines),
  pytest.param(Engine('ray', 2), marks=pytest.mark.engines),
]
on_every_engine = pytest.mark.parametrize(
  'engine', ENGINES, ids=lambda x: f'{x.name}-{x.workers}'
)


def files(folder):
  """All files of a pipeline's folder, markers too, with their contents."""
  paths = sorted(pathlib.Path(folder).rglob('*'))
  return {
    str(x.relative_to(folder)): x.read_bytes()
    for x in paths
    if x.is_file() and not x.name.startswith(('stop', 'failure', '.lock'))
  }


@pytest.fixture(scope='module')
def expected(tmp_path_factory):
  folder = tmp_path_factory.mktemp('expected')
  assert stages.run(folder) == (
    [{'numbers': 1}] * stages.NUMBERS,
    [{'numbers': stages.NUMBERS // stages.DIGITS}] * stages.DIGITS,
  )
  return files(folder)


@on_every_engine
def test_all_engines_and_worker_counts_write_the_same_bytes(
  engine, tmp_path, expected
):
  first, second = stages.run(tmp_path, engine)
  assert sum(x['numbers'] for x in first) == stages.NUMBERS
  assert sum(x['numbers'] for x in second) == stages.NUMBERS
  assert files(tmp_path) == expected
  assert b'1331\n' in files(tmp_path)['2.txt']


@pytest.mark.parametrize('limit', ['0.5', None])
def test_tasks_elsewhere_have_the_limit_of_pixels(limit, tmp_path, monkeypatch):
  def run_elsewhere(jobs, workers):
    pickled = pickle.dumps(jobs)
    monkeypatch.setenv(decoding.LIMIT_VARIABLE, '7')  # of another pipeline
    for index, job in enumerate(pickle.loads(pickled)):
      yield local_engine.Outcome(index, job.run())

  monkeypatch.setattr(local_engine, 'run', run_elsewhere)
  monkeypatch.delenv(decoding.LIMIT_VARIABLE, raising=False)
  if limit:
    monkeypatch.setenv(decoding.LIMIT_VARIABLE, limit)
  counts = run_stage('limits', [1, 2], stages.limit_of_pixels, tmp_path)
  assert counts == [{'limit': limit}] * 2


@on_every_engine
def test_a_failing_task_is_named_with_its_reason(engine, tmp_path):
  with pytest.raises(FailureError) as error:
    stages.run(tmp_path, engine, numbers=range(10, 15))
  assert str(error.value) == 'scatter 3 (13): ValueError: thirteen'


@pytest.mark.parametrize(
  'engine',
  [
    'local',
    pytest.param('beam', marks=pytest.mark.engines),
    pytest.param('ray', marks=pytest.mark.engines),
  ],
)
@pytest.mark.parametrize('number', [3, 8])
def test_a_killed_pipeline_goes_on(engine, number, tmp_path, expected):
  stop = tmp_path / f'stop-{number}'
  stop.touch()
  command = [sys.executable, '-m', 'tests.data.prepare.stages']
  process = subprocess.Popen(
    [*command, str(tmp_path), engine, '2'], start_new_session=True
  )
  try:
    until((tmp_path / 'stopped').exists)
    process.send_signal(signal.SIGKILL)
    process.wait()
  finally:
    # The worker that was stopped, and what an engine has besides.
    os.killpg(process.pid, signal.SIGKILL)
  stop.unlink()
  names = {x for x in files(tmp_path) if not x.endswith('.part')}
  before = {name for name in names if 'by-digit' in name}
  assert f'by-digit/{number % 3}-{number:02}.txt' not in before
  done = {x for x in before if _marker(tmp_path, x).exists()}
  times = {x: (tmp_path / x).stat().st_mtime_ns for x in done}
  stages.run(tmp_path)
  assert files(tmp_path) == expected
  assert all((tmp_path / x).stat().st_mtime_ns == times[x] for x in done)


def _marker(folder, name):
  number = int(name[-6:-4])
  return folder / '.stages' / 'scatter' / f'{number:07}.json'


def test_workers_end_with_the_process_that_started_them(tmp_path):
  for number in range(3):
    (tmp_path / f'stop-{number}').touch()
  command = [sys.executable, '-m', 'tests.data.prepare.stages']
  process = subprocess.Popen([*command, str(tmp_path), 'local', '2'])
  until(lambda: [*map(_state, _children(process.pid))].count('T') == 2)
  children = _children(process.pid)
  process.kill()
  process.wait()
  for child in children:
    os.kill(child, signal.SIGCONT)
  until(lambda: all(_state(x) in ('Z', '') for x in children))


def _children(pid):
  path = pathlib.Path(f'/proc/{pid}/task/{pid}/children')
  if not path.exists():
    pytest.skip('only Linux lists the children of a process')
  return [int(x) for x in path.read_text().split()]


def _state(pid):
  """R, S, T (stopped), Z (a zombie), or '' for a process that has gone."""
  try:
    text = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except (FileNotFoundError, ProcessLookupError):
    return ''
  return text.rpartition(')')[2].split()[0]


def test_a_worker_that_is_killed_fails_the_stage(tmp_path):
  with pytest.raises(FailureError, match=r'was killed.*--workers.*die \d'):
    run_stage('die', range(8), _die, tmp_path, engine=Engine('local', 2))


def _die(task):
  if task == 3:
    os.kill(os.getpid(), signal.SIGKILL)
  return {}


def test_other_settings_are_refused_and_nothing_is_mixed(tmp_path):
  stages.run(tmp_path, max_side=256, sizes=(1, 2))
  before = files(tmp_path)
  assert stages.run(tmp_path, max_side=256, sizes=(1, 2))
  with pytest.raises(UsageError) as error:
    stages.run(tmp_path, max_side=512, sizes=(1, 2))
  assert str(error.value) == (
    f'{tmp_path} (stage scatter) was begun with max_side 256, and it is now '
    '512: remove the folder, or name another.'
  )
  with pytest.raises(UsageError, match='with max_side 256, and it is now null'):
    stages.run(tmp_path, sizes=(1, 2))
  with pytest.raises(UsageError, match='number of tasks 12, and it is now 11'):
    stages.run(tmp_path, numbers=range(11), max_side=256, sizes=(1, 2))
  with pytest.raises(UsageError, match=r'task 0 \{"number": 0\}, and it is no'):
    stages.run(tmp_path, numbers=range(1, 13), max_side=256, sizes=(1, 2))
  assert files(tmp_path) == before


def test_what_is_done_is_not_done_again_unless_its_output_has_gone(
  tmp_path, expected
):
  stages.run(tmp_path)
  times = {x: (tmp_path / x).stat().st_mtime_ns for x in files(tmp_path)}
  gone = 'by-digit/1-04.txt'
  (tmp_path / gone).unlink()
  stages.run(tmp_path)
  assert files(tmp_path) == expected
  again = {
    x for x, time in times.items() if (tmp_path / x).stat().st_mtime_ns != time
  }
  assert again == {gone, '.stages/scatter/0000004.json'}


def test_what_a_killed_process_left_is_removed(tmp_path, expected):
  parts = 'by-digit/.1-04.txt.01.part', '.stages/scatter/.0000003.json.2.part'
  other = 'by-digit/.mine.01.part'
  for part in (*parts, other):
    (tmp_path / part).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / part).touch()
  stages.run(tmp_path)
  assert files(tmp_path) == expected | {other: b''}


def test_a_damaged_marker_is_named(tmp_path):
  stages.run(tmp_path)
  marker = tmp_path / '.stages' / 'scatter' / '0000002.json'
  marker.write_text('{"task": 1')
  with pytest.raises(FailureError, match=r'0000002\.json is not JSON'):
    stages.run(tmp_path)
  marker.write_text(json.dumps({'task': {'number': 2}}))
  with pytest.raises(FailureError, match="field 'counts' is missing"):
    stages.run(tmp_path)


def test_one_process_at_a_time_works_in_a_stage(tmp_path):
  with pytest.raises(FailureError, match=r'scatter 0 .*another process works'):
    run_stage('scatter', [0], _Again(tmp_path), tmp_path)


class _Again:
  def __init__(self, folder):
    self.folder = folder

  def __call__(self, task):
    return stages.run(self.folder)


def test_a_function_that_does_not_pickle_is_named(tmp_path):
  with pytest.raises(FailureError, match=r'^x 0 \(7\) does not pickle: '):
    run_stage('x', [7], lambda task: {}, tmp_path, engine=Engine('local', 2))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'name': 'spark'}, '--engine=.spark.: choose one of local, beam, ray'),
    ({'workers': -1}, '--workers=-1: use 0'),
    ({'beam_options': ('--x',)}, '--beam_options are of --engine=beam'),
  ],
)
def test_wrong_engines_are_refused(fields, message):
  with pytest.raises(UsageError, match=message):
    Engine(**fields)


@pytest.mark.engines
@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (['--runner=DirectRunner'], 'DirectRunner would fetch and start another'),
    (['--direct_num_workers=x'], r"error: argument --direct_num_workers.*'x'"),
  ],
)
def test_wrong_options_of_beam_are_refused(options, message, tmp_path):
  with pytest.raises(UsageError, match=message):
    stages.run(tmp_path, Engine('beam', 2, tuple(options)))


@pytest.mark.engines
def test_ray_listens_on_the_loopback_interface_alone(tmp_path):
  import psutil

  stages.run(tmp_path, Engine('ray', 2))  # it stays for the next stage
  me = psutil.Process()
  addresses = {
    connection.laddr.ip.removeprefix('::ffff:')
    for process in [me, *me.children(recursive=True)]
    for connection in process.net_connections('inet')
    if connection.status == psutil.CONN_LISTEN
  }
  assert addresses == {'127.0.0.1'}


def test_a_missing_engine_names_its_extra(tmp_path, monkeypatch):
  for name, module in (('beam', 'apache_beam'), ('ray', 'ray')):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf'pip install "\.\[{name}\]"'):
      stages.run(tmp_path / name, Engine(name, 2))


def test_a_stage_works_in_a_remote_folder(expected):
  folder = f'memory://stages-{os.getpid()}'
  first, second = stages.run(folder, Engine('local', 1))
  assert (len(first), len(second)) == (stages.NUMBERS, stages.DIGITS)
  assert stages.run(folder, Engine('local', 1)) == (first, second)


def test_engines_pickle():
  engine = Engine('beam', 3, ('--runner=FlinkRunner',))
  assert pickle.loads(pickle.dumps(engine)) == engine
