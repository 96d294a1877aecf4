"""Processes are killed at random moments; those that are left say which.

As many as CLIP_JAX_KILLS, from the seed CLIP_JAX_KILL_SEED, which is printed:

  CLIP_JAX_KILLS=50 CLIP_JAX_KILL_SEED=7 python -m pytest -s \\
      tests/training/test_lost_processes.py
"""

import dataclasses
import os
import random

import pytest

from clip_jax.checkpoints.reading import steps_of
from clip_jax.parallel.distributed import RESUME_ADVICE
from tests.processes import start_together
from tests.tiny import write_pairs
from tests.training.logged import losses

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get('CLIP_JAX_KILLS', '2'))
SEED = int(os.environ.get('CLIP_JAX_KILL_SEED', '0'))

# How long each phase takes at most before the kill, in seconds, and how often
# it may have begun before.
PHASES = {
  'start': (1.0, 0),
  'data': (1.0, 0),
  'restore': (1.0, 0),
  'step': (1.0, 8),
  'checkpoint': (0.3, 2),
  'evaluation': (1.0, 1),
  'report': (2.0, 0),
  'end': (0.2, 0),
}
LAST = ('report', 'end')  # of a run that comes to its end


@dataclasses.dataclass(frozen=True)
class Kill:
  phase: str
  victim: int
  which: str
  seconds: float

  @classmethod
  def draw(cls, phase, rng):
    longest, before = PHASES[phase]
    return cls(
      f'{phase}:{rng.randint(0, before)}',
      rng.randrange(2),
      rng.choice(('worker', 'guard')),
      round(rng.uniform(0, longest), 3),
    )

  @property
  def words(self):
    return (
      '-m',
      'tests.training.kill_in_phase',
      self.phase,
      str(self.seconds),
      self.which,
    )


def draw_kills(count, seed):
  """Each phase as often as each other, in a random order."""
  rng = random.Random(seed)
  names = list(PHASES)
  phases = []
  while len(phases) < count:
    phases += rng.sample(names, len(names))
  return [Kill.draw(phase, rng) for phase in phases[:count]]


NOBODY = ('-m', 'tests.training.kill_in_phase', 'none', '0', 'worker')


@pytest.fixture
def start(tmp_path):
  """A function that starts two processes, one of them with a kill."""
  data = write_pairs(tmp_path / 'pairs', 8)
  held_out = write_pairs(tmp_path / 'held_out', 8)
  started = []

  def start(name, kill=None, *extra):
    words = {0: NOBODY, 1: NOBODY}
    if kill:
      words[kill.victim] = kill.words
    processes = start_together(
      2, 2, 'train', '--config=tests/tiny.py',
      f'--workdir={tmp_path / name}', f'--config.data.train={data}',
      f'--config.total_steps={4 if name == "short" else 10_000}',
      '--config.data.batch_size=8', '--config.log_every_steps=1',
      '--config.checkpoint.every_steps=2',
      f'--config.evaluation.data={held_out}',
      '--config.evaluation.every_steps=3',
      "--config.evaluation.tasks=('retrieval',)", *extra,
      first=words,
    )  # fmt: skip
    started.extend(processes)
    outputs = [process.communicate(timeout=900) for process in processes]
    return [
      (process.returncode, *output)
      for process, output in zip(processes, outputs, strict=True)
    ]

  yield start
  for process in started:
    process.kill()


def check_survivor(kill, code, out, err):
  if kill.phase == 'end:0' and code == 0:
    return  # after the last meeting
  fates = ['was lost: it died, or cannot be reached']
  if kill.phase == 'start:0':
    fates.append('did not start, or cannot be reached')
  said = {
    f'error: process {kill.victim} of 2 {x}. {RESUME_ADVICE}' for x in fates
  }
  assert (err.splitlines() or [''])[-1] in said, out + err
  assert code == 1
  assert err.count('error:') == 1, err
  for word in ('Traceback', 'Check failure', 'warning', 'coordination'):
    assert word not in err, err


def test_whoever_is_left_names_the_lost_one_and_the_next_start_goes_on(
  tmp_path, start
):
  print(f'\nCLIP_JAX_KILL_SEED={SEED} CLIP_JAX_KILLS={KILLS}')
  for number, kill in enumerate(draw_kills(KILLS, SEED)):
    print(f'{number}: {kill}', flush=True)
    name = 'short' if kill.phase.split(':')[0] in LAST else 'long'
    saved = steps_of(tmp_path / name)
    (tmp_path / name / 'report.html').unlink(missing_ok=True)
    results = start(name, kill)
    code, out, err = results[1 - kill.victim]
    check_survivor(kill, code, out, err)
    steps = [step for step, _ in losses(tmp_path / name)]
    assert steps == list(range(1, len(steps) + 1))
    # Another two steps are lost where the newest was not whole yet.
    assert len(steps) - max(steps_of(tmp_path / name), default=0) <= 4
    assert steps_of(tmp_path / name)[:1] >= saved[:1]
  for code, _, err in start('short'):
    assert code == 0, err
  assert (tmp_path / 'short' / 'report.html').is_file()


@pytest.mark.parametrize('victim', [0, 1])
def test_a_disk_that_is_full_is_blamed_by_all(start, victim):
  both_write = ('--config.mesh.data=1', '--config.mesh.fsdp=2')
  results = start('long', Kill('checkpoint:0', victim, 'disk', 0), *both_write)
  code, _, own = results[victim]
  assert code == 1
  # Process 0 writes its metrics, too; it leaves when the other has heard.
  # Threads of the storage library may still tell of their closed event loop.
  [said] = [line for line in own.splitlines() if line.startswith('error: ')]
  said = said.removeprefix('error: ')
  assert said.startswith('a checkpoint could not be written') or (
    victim == 0 and said == 'file too large.'
  ), own
  code, _, others = results[1 - victim]
  assert code == 1
  # A step that was under way may still be told of.
  [said] = [line for line in others.splitlines() if line.startswith('error: ')]
  assert said.startswith(f'error: process {victim} of 2 failed: '), others
