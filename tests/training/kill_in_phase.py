"""One of several processes of a verb that is killed in some phase.

usage: python -m tests.training.kill_in_phase PHASE SECONDS WHICH WORDS…

WORDS are those of `clip-jax`. So many seconds after the phase has begun,
SIGKILL ends the process that works (WHICH is `worker`) or the one that waits
for it (`guard`), and with it the worker. Where WHICH is `disk`, it lives on,
and can write no more than a few bytes to a file. PHASE is one of `PHASES`, with
the number of times that it begins before, as in checkpoint:1; or `none`.

Lost processes are noticed sooner here than they are for users.
"""

import os
import resource
import signal
import sys
import threading
from typing import Any

from clip_jax import __main__
from clip_jax.checkpoints import manager
from clip_jax.evaluation.suite import run as suite_run
from clip_jax.inference import shards
from clip_jax.parallel import distributed, peer_failures
from clip_jax.report import training as report
from clip_jax.training import evaluations, loop, prefetch

# What begins each phase: an owner, and the name of a function that it has.
PHASES: dict[str, tuple[Any, str]] = {
  'start': (distributed, '_connect'),
  'data': (loop, 'prepare_run'),
  'restore': (manager.Checkpoints, 'restore'),
  'step': (prefetch.Prefetcher, 'submit'),
  'checkpoint': (manager.Checkpoints, 'save'),
  'evaluation': (evaluations, 'evaluate'),
  'report': (report, 'write_report'),
  'features': (shards.ShardStore, 'read_all'),  # of eval
  'suite': (suite_run, '_evaluate'),
  'end': (distributed, '_disconnect'),
}


def kill_in(phase: str, seconds: float, which: str) -> None:
  """Replaces the phase's function by one that starts the clock, too."""
  name, _, before = phase.partition(':')
  owner, function = PHASES[name]
  call, left = getattr(owner, function), int(before or 0)

  def begin(*args: Any, **kwargs: Any) -> Any:
    nonlocal left
    if not left:
      victim = os.getppid() if which == 'guard' else os.getpid()
      print(f'{which}: {seconds} s into {phase}', flush=True)
      if which == 'disk':
        fill_disk()
      else:
        clock = threading.Timer(seconds, os.kill, [victim, signal.SIGKILL])
        clock.daemon = True
        clock.start()
    left -= 1
    return call(*args, **kwargs)

  setattr(owner, function, begin)


def fill_disk() -> None:
  """As if the disk were full, for files that are not small."""
  signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))


if __name__ == '__main__':
  peer_failures.HEARTBEAT_SECONDS = 12
  distributed._START_SECONDS = 60
  phase, seconds, which, *words = sys.argv[1:]
  if phase != 'none':
    kill_in(phase, float(seconds), which)
  sys.exit(__main__.main(words))
