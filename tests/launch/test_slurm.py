"""launch/slurm.sh, by hand and as a job, against stand-ins for Slurm."""

import shlex

import pytest

from tests.launch.conftest import one_error_line

RUN = ('--config=configs/emoji.py', '--workdir=/scratch/run')


@pytest.fixture
def slurm(project):
  """The project on a cluster, where `said` collects what was called."""
  for name in ('sbatch', 'srun', 'scontrol'):
    project.command(
      name,
      f'printf "%q " {name} "$@" >>"$HOME/said"; echo >>"$HOME/said"\n'
      f'exit "${{{name}_code:-0}}"',
    )
  project.put('launch/setup.sh', 'echo "setup ($1)" >>"$HOME/said"\n')
  return project


def said(slurm):
  path = slurm.bin.parent / 'said'
  lines = path.read_text().splitlines() if path.exists() else []
  return [shlex.split(line) for line in lines]


def submit(slurm, *words, **environment):
  return slurm.run('bash', 'launch/slurm.sh', *words, **environment)


def train(slurm, code):
  return submit(slurm, *RUN, SLURM_JOB_ID='7', srun_code=str(code))


def test_by_hand_it_installs_and_submits_itself(slurm):
  words = ('--sbatch=--nodes=4', *RUN, '--config.data.captions=("a", "b")')
  assert submit(slurm, *words).returncode == 0
  assert said(slurm) == [
    ['setup', '(gpu)'],
    [
      *('sbatch', '--nodes=4', f'--chdir={slurm.folder}', 'launch/slurm.sh'),
      *(*RUN, '--config.data.captions=("a", "b")'),
    ],
  ]


def test_extra_may_be_nothing(slurm):
  submit(slurm, *RUN, EXTRA='')
  assert said(slurm)[0] == ['setup', '()']


def test_a_dry_run_prints_the_same_commands_and_runs_none(slurm):
  words = ('--sbatch=--nodes=4', *RUN, "--config.x=it's")
  dry = submit(slurm, *words, '--dry-run')
  assert dry.returncode == 0
  assert said(slurm) == []
  printed = [shlex.split(line) for line in dry.stdout.splitlines()]
  submit(slurm, *words)
  assert printed[0] == ['bash', 'launch/setup.sh', 'gpu']
  assert printed[1:] == said(slurm)[1:]


def test_as_a_job_it_trains_in_every_task(slurm):
  assert train(slurm, 0).returncode == 0
  (srun,) = said(slurm)
  assert srun[0] == 'srun'
  assert srun[-5:] == [
    *('.venv/bin/clip-jax', 'train', '--stopped_exit_code=75'),
    *RUN,
  ]
  # The others may still be writing when the first has ended.
  assert '--kill-on-bad-exit=0' in srun


def test_what_was_stopped_goes_back_into_the_queue(slurm):
  train(slurm, 75)
  assert said(slurm)[-1] == ['scontrol', 'requeue', '7']


@pytest.mark.parametrize('code', [1, 2, 137])
def test_what_failed_does_not(slurm, code):
  assert train(slurm, code).returncode == code
  assert len(said(slurm)) == 1


def test_what_slurm_is_asked_for(slurm):
  script = (slurm.folder / 'launch/slurm.sh').read_text().splitlines()
  asked = [line.split()[1] for line in script if line.startswith('#SBATCH')]
  assert '--requeue' in asked
  assert '--signal=TERM@120' in asked  # to the steps: no B:
  assert '--open-mode=append' in asked  # a job that resumes keeps its log
  # sbatch reads no further than the first command.
  assert script[1].startswith('#SBATCH')


@pytest.mark.parametrize(
  ('words', 'code', 'message'),
  [
    (('--nodes=4', *RUN), 2, 'does not take --nodes=4'),
    (('--config=configs/none.py', '--workdir=x'), 2, 'configs/none.py'),
    (('--config=configs/emoji.py',), 2, 'no --workdir'),
    ((), 2, 'is no file'),
  ],
)
def test_a_wrong_call_is_one_line(slurm, words, code, message):
  done = submit(slurm, *words)
  assert done.returncode == code
  assert message in one_error_line(done)
  assert said(slurm) == []


def test_without_slurm(slurm):
  (slurm.bin / 'sbatch').unlink()
  assert 'no command sbatch' in one_error_line(submit(slurm, *RUN))


def test_a_refused_job(slurm):
  done = submit(slurm, *RUN, sbatch_code='1')
  assert done.returncode == 1
  assert 'sbatch refused the job' in one_error_line(done)


def test_help(slurm):
  done = submit(slurm, '--help')
  assert done.returncode == 0
  assert 'usage:' in done.stdout
