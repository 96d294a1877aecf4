"""`clip-jax eval` as several real processes: one result, from one of them."""

import json
import os
import socket
import subprocess
import sys

import pytest

from tests.tiny import write_pairs

DEVICES = 4  # of all processes together


def evaluate(count, *flags):
  """What each of `count` processes printed."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  processes = []
  for index in range(count):
    devices = f'--xla_force_host_platform_device_count={DEVICES // count}'
    environment = os.environ | {
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} {devices}',
      'JAX_COORDINATOR_ADDRESS': address,
      'JAX_NUM_PROCESSES': str(count),
      'JAX_PROCESS_ID': str(index),
    }
    processes.append(
      subprocess.Popen(
        [sys.executable, '-m', 'clip_jax', 'eval', *flags],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  ended = [process.communicate(timeout=300) for process in processes]
  for process, (_, errors) in zip(processes, ended, strict=True):
    assert process.returncode == 0, errors
  return [out for out, _ in ended]


@pytest.mark.slow
def test_two_processes_measure_as_one_does_fresh_and_cached(workdir, tmp_path):
  data = write_pairs(tmp_path / 'pictures', 30)
  flags = [f'--model={workdir}', '--task=retrieval', f'--data={data}']

  def kept(count, name, *more):
    out = tmp_path / f'{name}.json'
    outputs = evaluate(count, *flags, f'--out={out}', *more)
    assert 'image_to_text_r1' in outputs[0]
    assert not any('image_to_text_r1' in out for out in outputs[1:])
    return json.loads(out.read_text())

  alone = kept(1, 'alone')
  cache = f'--cache={tmp_path / "features"}'
  assert kept(2, 'fresh', cache) == alone
  entries = {path for path in (tmp_path / 'features').rglob('*.npz')}
  assert len(entries) == 2  # pictures and texts
  assert kept(2, 'cached', cache) == alone
