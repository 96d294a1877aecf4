"""launch/tpu_pod.sh, run for real against a stand-in for gcloud."""

import json
import os
import pathlib
import shlex
import signal
import subprocess

import pytest

from tests.launch.conftest import one_error_line
from tests.waiting import PATIENCE, until

WHERE = ('--name=pod', '--zone=us-west4-a')
RUN = (
  *WHERE,
  '--topology=v5e:16x16',
  '--config=configs/emoji.py',
  '--workdir=gs://bucket/run',
)
ACTIVE = ['ACTIVE']
SLOW = ['', 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE']


class Pod:
  """The script, and the queued resource that it believes to manage."""

  def __init__(self, project):
    self.project = project
    self.path = pathlib.Path(project.bin, 'cloud.json')
    project.environment['FAKE_GCLOUD'] = str(self.path)
    project.python_command(
      'gcloud', pathlib.Path(__file__).with_name('fake_gcloud.py')
    )
    self.set()

  def set(self, states=(), created=(), waits=(), running=(), fails=()):
    self.path.write_text(
      json.dumps(
        {
          'states': states,
          'created': created,
          'waits': waits,
          'running': running,
          'fails': fails,
          'calls': [],
        }
      )
    )

  def run(self, *words):
    return self.project.run('bash', 'launch/tpu_pod.sh', *words)

  @property
  def calls(self):
    return json.loads(self.path.read_text() or '{"calls": []}')['calls']

  @property
  def steps(self):
    """What was done, in order: the verb, or what a worker was told."""
    return [step(words) for words in self.calls if words[3] != 'list']


def step(words):
  for word in words:
    if word.startswith('--command='):
      return word.partition('worker.sh ')[2].split()[0]
  return words[3]


FRESH = ['create', 'running', 'scp', 'install', 'start', 'wait']
AGAIN = ['running', 'scp', 'install', 'start', 'wait']


@pytest.fixture
def pod(project):
  return Pod(project)


def test_a_missing_resource_is_created_waited_for_and_trained_on(pod):
  pod.set(created=[SLOW], waits=[[0, []]])
  done = pod.run('train', *RUN, '--config.seed=1')
  assert done.returncode == 0, done.stderr
  assert pod.steps == FRESH
  assert 'step 1 loss' in done.stdout
  assert 'pod: WAITING_FOR_RESOURCES' in done.stderr
  start = next(c for c in pod.calls if step(c) == 'start')
  assert {'--node=all', '--worker=all'} < set(start)
  command = next(w for w in start if w.startswith('--command='))
  assert shlex.split(command)[1:] == [
    *('bash', 'clip_jax/launch/worker.sh', 'start'),
    *('--config=configs/emoji.py', '--workdir=gs://bucket/run'),
    '--config.seed=1',
  ]


def test_a_dry_run_prints_the_commands_of_a_real_one_and_runs_none(pod):
  flags = (*RUN, '--spot', '--config.data.captions=("a", "it\'s")')
  dry = pod.run('train', *flags, '--dry-run')
  assert dry.returncode == 0, dry.stderr
  assert pod.calls == []
  printed = [
    shlex.split(line)
    for line in dry.stdout.splitlines()
    if not line.startswith('#')
  ]
  pod.set(created=[ACTIVE, ACTIVE], waits=[[255, ['SUSPENDED']], [0, []]])
  assert pod.run('train', *flags).returncode == 0
  ran = {tuple(words) for words in pod.calls}
  assert {tuple(w[1:]) for w in printed if w[0] == 'gcloud'} == ran
  assert [w[0] for w in printed if w[0] != 'gcloud'] == ['tar']


def test_what_was_printed_can_be_pasted_into_a_shell(pod):
  dry = pod.run('train', *RUN, '--env=A=b c', '--dry-run')
  pod.set(created=[ACTIVE], waits=[[0, []]])
  pasted = pod.project.run('bash', '-c', dry.stdout)
  assert pasted.returncode == 0, pasted.stderr
  assert pod.steps == [*FRESH, 'delete']
  assert any('A=b\\ c' in word for call in pod.calls for word in call)


def test_after_a_preemption_it_is_deleted_created_and_resumed(pod):
  pod.set(
    created=[ACTIVE, SLOW],
    waits=[[255, ['ACTIVE', 'SUSPENDING', 'SUSPENDED']], [0, []]],
  )
  done = pod.run('train', *RUN, '--spot')
  assert done.returncode == 0, done.stderr
  assert pod.steps == [*FRESH, 'delete', *FRESH]
  starts = [call for call in pod.calls if step(call) == 'start']
  assert starts[0] == starts[1]
  assert 'pod was interrupted: starting again.' in done.stderr


def test_preemptions_are_not_counted_as_failures(pod):
  pod.set(
    created=[ACTIVE] * 5, waits=[[255, ['SUSPENDED']]] * 4 + [[0, ACTIVE]]
  )
  assert pod.run('train', *RUN, '--max-restarts=0').returncode == 0
  assert pod.steps.count('create') == 5


def test_training_that_runs_already_is_only_followed(pod):
  pod.set(states=ACTIVE, running=[0], waits=[[0, []]])
  assert pod.run('train', *RUN).returncode == 0
  assert pod.steps == ['running', 'wait']


def test_an_active_resource_is_used(pod):
  pod.set(states=ACTIVE, waits=[[0, []]])
  assert pod.run('train', *RUN).returncode == 0
  assert pod.steps == AGAIN


@pytest.mark.parametrize('left', ['FAILED', 'SUSPENDED'])
def test_what_an_earlier_preemption_left_is_replaced(pod, left):
  pod.set(states=['SUSPENDING', left], created=[ACTIVE], waits=[[0, []]])
  assert pod.run('train', *RUN).returncode == 0
  assert pod.steps == ['delete', *FRESH]


def test_a_lost_connection_is_not_a_lost_run(pod):
  pod.set(states=ACTIVE, running=[1, 0], waits=[[1, []], [0, []]])
  done = pod.run('train', *RUN, '--max-restarts=0')
  assert done.returncode == 0, done.stderr
  assert pod.steps == [*AGAIN, 'running', 'wait']


def test_stopped_machines_of_an_active_resource_train_again(pod):
  pod.set(states=ACTIVE, waits=[[75, []], [0, []]])
  assert pod.run('train', *RUN, '--max-restarts=0').returncode == 0
  assert pod.steps == [*AGAIN, 'running', 'stop', *AGAIN]


def test_failures_are_tried_again_so_often_and_no_more(pod):
  pod.set(states=ACTIVE, waits=[[1, []], [1, []]])
  done = pod.run('train', *RUN, '--max-restarts=1')
  assert done.returncode == 1
  assert pod.steps == [*AGAIN, 'running', 'stop', *AGAIN, 'running']
  last = done.stderr.splitlines()[-1]
  assert last.startswith('error: pod failed 2 times, the last with code 1')


def test_a_call_that_training_refuses_is_not_repeated(pod):
  pod.set(states=ACTIVE, waits=[[2, []]])
  done = pod.run('train', *RUN)
  assert done.returncode == 2
  assert pod.steps == AGAIN


def test_a_resource_that_never_becomes_active_is_tried_again(pod):
  pod.set(created=[['PROVISIONING', 'FAILED']] * 2)
  done = pod.run('train', *RUN, '--max-restarts=1')
  assert done.returncode == 1
  assert pod.steps == ['create', 'delete', 'create']


@pytest.mark.parametrize(
  ('left', 'flags'), [('SUSPENDED', ()), ('FAILED', ('--spot',))]
)
def test_a_preemption_before_it_is_active_is_no_failure(pod, left, flags):
  pod.set(created=[['PROVISIONING', left], ACTIVE], waits=[[0, []]])
  done = pod.run('train', *RUN, *flags, '--max-restarts=0')
  assert done.returncode == 0, done.stderr
  assert pod.steps == ['create', 'delete', *FRESH]


def test_a_resource_that_is_refused_is_an_error_at_once(pod):
  pod.set(fails=['create'])
  done = pod.run('train', *RUN)
  assert done.returncode == 1
  assert done.stderr.splitlines() == [
    'ERROR: (gcloud) create: quota exceeded',
    'error: pod could not be created.',
  ]


def test_a_copy_that_fails_is_tried_again(pod):
  pod.set(states=ACTIVE, fails=['scp', 'scp'])
  done = pod.run('train', *RUN, '--max-restarts=1')
  assert done.returncode == 1
  assert pod.steps.count('scp') == 2
  assert 'start' not in pod.steps


def test_a_preemption_while_copying_is_no_failure(pod):
  pod.set(
    states=['ACTIVE', 'ACTIVE', 'SUSPENDED'],
    created=[ACTIVE],
    fails=['scp'],
    waits=[[0, []]],
  )
  done = pod.run('train', *RUN, '--max-restarts=0')
  assert done.returncode == 0, done.stderr
  assert pod.steps == ['running', 'scp', 'delete', *FRESH]


def test_several_slices(pod):
  pod.set(created=[ACTIVE], waits=[[0, []]])
  assert pod.run('train', *RUN, '--slices=2').returncode == 0
  create = next(c for c in pod.calls if c[3] == 'create')
  assert {'--node-count=2', '--node-prefix=pod'} < set(create)
  start = next(c for c in pod.calls if step(c) == 'start')
  assert any('--config.mesh.slices=2' in word for word in start)


@pytest.mark.parametrize(
  ('topology', 'accelerator', 'image'),
  [
    ('v4:2x2x4', 'v4-32', 'tpu-ubuntu2204-base'),
    ('v5e:16x16', 'v5litepod-256', 'v2-alpha-tpuv5-lite'),
    ('v5p:4x4x4', 'v5p-128', 'v2-alpha-tpuv5'),
    ('v6e:4x8', 'v6e-32', 'v2-alpha-tpuv6e'),
  ],
)
def test_names_of_the_slices(pod, topology, accelerator, image):
  dry = pod.run('train', *RUN, f'--topology={topology}', '--dry-run')
  assert f'--accelerator-type={accelerator} ' in dry.stdout
  assert f'--runtime-version={image} ' in dry.stdout


def test_more_flags_for_gcloud(pod):
  dry = pod.run(
    *('train', *RUN, '--create=--reserved', '--ssh=--internal-ip'),
    *('--project=mine', '--runtime=other', '--dry-run'),
  )
  lines = [x for x in dry.stdout.splitlines() if x.startswith('gcloud')]
  assert all('--project=mine' in line for line in lines)
  verbs = {shlex.split(line)[4]: line for line in lines}
  assert '--reserved' in verbs['create']
  assert '--runtime-version=other' in verbs['create']
  assert '--internal-ip' in verbs['ssh'] and '--internal-ip' in verbs['scp']


def test_the_archive_has_what_a_worker_needs(pod):
  pod.set(states=ACTIVE, waits=[[0, []]])
  pod.run('train', *RUN)
  (archive,) = [w for c in pod.calls for w in c if w.endswith('pod.tar.gz')]
  names = pod.project.run('tar', '-tzf', archive).stdout.splitlines()
  assert {'launch/worker.sh', 'requirements.txt', 'configs/emoji.py'} < set(
    names
  )


def test_the_other_verbs(pod):
  pod.set(states=ACTIVE, waits=[[0, []]])
  assert pod.run('status', *WHERE).stdout == 'ACTIVE\n'
  assert 'step 1' in pod.run('follow', *WHERE).stdout
  assert pod.run('stop', *WHERE).returncode == 0
  assert pod.run('delete', *WHERE).returncode == 0
  assert pod.steps == ['wait', 'stop', 'delete']
  assert '--force' in pod.calls[-1]


def test_delete_after(pod):
  pod.set(states=ACTIVE, waits=[[0, []]])
  assert pod.run('train', *RUN, '--delete-after').returncode == 0
  assert pod.steps == [*AGAIN, 'delete']


def test_ctrl_c_leaves_training_alone_and_says_so(pod):
  pod.set(states=ACTIVE, running=[0], waits=[[None, []]])
  script = subprocess.Popen(
    ['bash', 'launch/tpu_pod.sh', 'train', *RUN],
    cwd=pod.project.folder,
    env=pod.project.environment,
    stderr=subprocess.PIPE,
    start_new_session=True,
    text=True,
  )
  until(lambda: pod.steps == ['running', 'wait'])
  os.killpg(script.pid, signal.SIGINT)  # as a terminal does
  _, said = script.communicate(timeout=PATIENCE)
  assert script.returncode == 130
  assert 'training goes on' in said
  assert pod.steps == ['running', 'wait']


def test_without_gcloud(pod):
  (pod.project.bin / 'gcloud').unlink()
  done = pod.run('train', *RUN)
  assert done.returncode == 1
  assert 'no command gcloud' in one_error_line(done)


def test_a_dry_run_needs_no_gcloud(pod):
  (pod.project.bin / 'gcloud').unlink()
  assert pod.run('train', *RUN, '--dry-run').returncode == 0


@pytest.mark.parametrize(
  ('words', 'said'),
  [
    ((), 'tpu_pod.sh takes train, follow'),
    (('trian', *RUN), "not 'trian'"),
    (('train', '--zone=z'), 'no --name'),
    (('train', '--name=pod'), 'no --zone'),
    (('train', '--name=Pod', '--zone=z'), 'lower-case'),
    (('train', *RUN, '--slice=2'), 'does not take --slice=2'),
    (('train', *RUN, '--slices=two'), "not 'two'"),
    (('train', *RUN, '--slices=0'), 'at least 1'),
    (('train', *RUN, '--topology=v5e:16'), 'such as v5e:16x16'),
    (('train', *RUN, '--topology=v9:4x4'), 'such as v5e:16x16'),
    (('train', *RUN, '--workdir=runs/x'), 'must be gs://'),
    (('train', *RUN, '--config=configs/none.py'), 'no file in configs/'),
    (('train', *RUN, '--config=/tmp/mine.py'), 'no file in configs/'),
  ],
)
def test_a_wrong_call_is_one_line_before_anything_is_paid_for(pod, words, said):
  done = pod.run(*words)
  assert done.returncode == 2
  assert said in one_error_line(done)
  assert pod.calls == []


def test_help(pod):
  for words in (('--help',), ('train', '--help')):
    done = pod.run(*words)
    assert done.returncode == 0
    assert 'usage:' in done.stdout and '--topology=' in done.stdout
