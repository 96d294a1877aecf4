"""open_clip in a process of its own, which waits for its turns."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from clip_jax.benchmarks.timing import Figures
from clip_jax.errors import FailureError
from clip_jax.models import presets

# Takes a turn: (what, batch) -> seconds of one call. What is `image` or
# `text`, an encoder, or `train`, a step.
Turn = Callable[[str, int], float]


@contextmanager
def open_clip(
  preset: str, dtype: str, python: str | None = None
) -> Iterator[Turn]:
  """open_clip's model of the same shape, with random weights.

  Two runtimes in one process disturb each other; so it gets its own, with as
  many threads as there are cores. It is idle while it has no turn.

  Args:
    preset: a published model.
    dtype: of its weights and inputs.
    python: the interpreter, where open_clip is installed; None is this one.
  Raises:
    FailureError: open_clip is not installed, does not know the model, or
      stopped.
  """
  name = preset.replace('/', '-').replace('@', '-')
  config = presets.resolve(preset)
  if config.text.activation == 'quick_gelu':
    name += '-quickgelu'
  process = subprocess.Popen(
    [
      python or sys.executable,
      os.path.join(os.path.dirname(__file__), 'open_clip_turns.py'),
      *(name, dtype, str(os.cpu_count() or 1)),
    ],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdin and process.stdout
  try:
    _answer(process.stdout)
    stdin, stdout = process.stdin, process.stdout

    def turn(what: str, batch: int) -> float:
      print(json.dumps([what, batch]), file=stdin, flush=True)
      return _answer(stdout)['seconds']

    yield turn
  finally:
    process.stdin.close()
    process.wait()


def _answer(stdout: Iterable[str]) -> Figures:
  """The next line of the process, unless it says what is wrong."""
  line = next(iter(stdout), '')
  answer = json.loads(line) if line else {'error': 'open_clip stopped.'}
  if 'error' in answer:
    raise FailureError(answer['error'])
  return answer
