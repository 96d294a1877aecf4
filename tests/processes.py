"""The same command as several real processes of one JAX program."""

import os
import socket
import subprocess
import sys


def run_together(count: int, devices: int, *words: str) -> list[str]:
  """Runs `python WORDS` `count` times at once; all of them succeed.

  Args:
    count: of processes.
    devices: of all processes together.
  Returns:
    What each printed.
  """
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  share = f'--xla_force_host_platform_device_count={devices // count}'
  processes = []
  for index in range(count):
    environment = os.environ | {
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} {share}',
      'JAX_COORDINATOR_ADDRESS': address,
      'JAX_NUM_PROCESSES': str(count),
      'JAX_PROCESS_ID': str(index),
    }
    processes.append(
      subprocess.Popen(
        [sys.executable, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  try:
    ended = [process.communicate(timeout=300) for process in processes]
  finally:
    for process in processes:
      process.kill()
  for process, (_, errors) in zip(processes, ended, strict=True):
    assert process.returncode == 0, errors
  return [out for out, _ in ended]
