"""Compiles in a child process.

libtpu reads its settings when it is loaded, may end the process that it is
loaded in, and must not touch a TPU that is in use. In a child process, none of
that affects the caller.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from clip_jax.errors import FailureError, UsageError
from clip_jax.planning.topology import Topology, parse_topology
from clip_jax.training.config import Config
from clip_jax.training.saved_config import config_to_json

# For a process that compiles with libtpu.
ENVIRONMENT = {
  'JAX_PLATFORMS': 'cpu',
  'TPU_SKIP_MDS_QUERY': '1',  # this machine's metadata say nothing of a TPU
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # two plans, or a plan beside a run
}
# Variables that a caller may have set for its own devices, which would give the
# child other devices.
UNSET = ('XLA_FLAGS', 'JAX_NUM_CPU_DEVICES', 'LIBTPU_INIT_ARGS')


def check_libtpu() -> None:
  """Refuses to plan without the compiler.

  Raises:
    UsageError: libtpu is not installed.
  """
  if importlib.util.find_spec('libtpu') is None:
    raise UsageError(
      'planning compiles with libtpu, which is not installed: '
      'pip install ".[plan]".'
    )


def measure_in_child(
  config: Config,
  topology: Topology,
  on_second: Callable[[float], None] = lambda seconds: None,
) -> dict[str, Any]:
  """Runs `compiling.measure` in a child process.

  Args:
    on_second: is called every second with the seconds of compiling so far;
      before that, a config that cannot work has been refused.
  Raises:
    UsageError: the config cannot work on this topology.
    FailureError: the compiler failed otherwise.
  """
  request = {
    'config': config_to_json(config),
    'topology': topology.name,
    'slices': topology.slices,
  }
  root = os.fspath(Path(__file__).parents[2])
  path = os.pathsep.join(filter(None, [root, os.environ.get('PYTHONPATH')]))
  inherited = {k: v for k, v in os.environ.items() if k not in UNSET}
  with tempfile.TemporaryDirectory() as folder:
    answer, log = Path(folder, 'answer.json'), Path(folder, 'log')
    Path(folder, 'request.json').write_text(json.dumps(request), 'utf-8')
    with log.open('wb') as stream:
      process = subprocess.Popen(
        [sys.executable, '-m', __name__, folder, str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=stream,
        stderr=stream,
        env={**inherited, **ENVIRONMENT, 'PYTHONPATH': path},
      )
    try:
      _wait(process, Path(folder, 'compiles'), on_second)
    finally:
      process.kill()
    if not answer.exists():
      raise FailureError(_cause(process.returncode, log))
    result = json.loads(answer.read_text('utf-8'))
  if 'usage_error' in result:
    raise UsageError(result['usage_error'])
  return result


def _wait(
  process: subprocess.Popen, marker: Path, on_second: Callable[[float], None]
) -> None:
  started: float | None = None
  while True:
    try:
      process.wait(timeout=1)
      return
    except subprocess.TimeoutExpired:
      if marker.exists():
        now = time.monotonic()
        started = started or now
        on_second(now - started)


def _cause(code: int, log: Path) -> str:
  """Returns why the child ended: the last line that names an error."""
  lines = log.read_text('utf-8', errors='replace').strip().splitlines()
  errors = [
    line for line in lines if re.match(r'[\w.]+(Error|Exception): ', line)
  ]
  reason = (errors or lines or ['it said nothing'])[-1]
  if code < 0:
    reason = f'it was ended by signal {-code}, as happens when memory runs out'
  return f'compiling for the topology failed: {reason}'


def _end_with(parent: int) -> None:
  """Ends this process when the one that started it is gone, however."""
  while os.getppid() == parent:
    time.sleep(1)
  os._exit(1)


def main(folder: str, parent: int) -> None:
  """Answers the request in a folder while the caller's process lives."""
  threading.Thread(target=_end_with, args=(parent,), daemon=True).start()

  from clip_jax.planning.compiling import measure

  request = json.loads(Path(folder, 'request.json').read_text('utf-8'))
  topology = parse_topology(request['topology'], request['slices'])
  try:
    result = measure(
      ConfigDict(request['config']), topology, Path(folder, 'compiles').touch
    )
  except UsageError as error:
    result = {'usage_error': str(error)}
  temporary = Path(folder, 'answer.tmp')
  temporary.write_text(json.dumps(result), 'utf-8')
  temporary.replace(Path(folder, 'answer.json'))


if __name__ == '__main__':
  main(sys.argv[1], int(sys.argv[2]))
