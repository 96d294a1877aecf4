"""The same command as several real processes of one JAX program."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence


def start_together(
  count: int,
  devices: int,
  *words: str,
  stderr: int = subprocess.PIPE,
  first: Mapping[int, Sequence[str]] | None = None,
) -> list[subprocess.Popen[str]]:
  """Starts `python WORDS` `count` times, as one program of JAX.

  Args:
    count: of processes.
    devices: of all processes together.
    stderr: of each, as `subprocess` has it.
    first: words before the others, by the processes that have some.
  """
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  share = f'--xla_force_host_platform_device_count={devices // count}'
  processes = []
  for index in range(count):
    environment = os.environ | {
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {share}',
      'JAX_COORDINATOR_ADDRESS': address,
      'JAX_NUM_PROCESSES': str(count),
      'JAX_PROCESS_ID': str(index),
    }
    processes.append(
      subprocess.Popen(
        [sys.executable, *(first or {}).get(index, ()), *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
      )
    )
  return processes


def run_together(
  count: int, devices: int, *words: str, seconds: float = 300
) -> list[str]:
  """The same to their end, within so many seconds; all of them succeed.

  Returns:
    What each printed.
  """
  processes = start_together(count, devices, *words)
  try:
    ended = [process.communicate(timeout=seconds) for process in processes]
  finally:
    for process in processes:
      process.kill()
  for process, (_, errors) in zip(processes, ended, strict=True):
    assert process.returncode == 0, errors
  return [out for out, _ in ended]
