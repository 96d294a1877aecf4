"""Measures train steps on more and more devices, with the same pairs on each.

The devices are a CPU's fake ones, which share its cores: the figures say what a
step of so many devices consists of, not how much faster more of them are.
"""

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from clip_jax.benchmarks.step import paper_step, repeated
from clip_jax.benchmarks.timing import Figures, median_seconds
from clip_jax.errors import FailureError
from clip_jax.models import presets
from clip_jax.models.config import CLIPConfig
from clip_jax.parallel.devices import use_cpu_devices
from clip_jax.parallel.distributed import (
  ADDRESS,
  COUNT,
  INDEX,
  detect_cluster,
  is_first_process,
  join_cluster,
)
from clip_jax.parallel.mesh import make_mesh
from clip_jax.planning import hlo
from clip_jax.planning.collectives import OPS, collectives

DEVICES = (1, 2, 4, 8)
_PROCESSES = 2
_TRACED_STEPS = 3
_SECONDS = 900.0  # for the processes to end
_STEP = 'bench_scaling_step'  # the event of a step
# The event of a collective, such as "all-reduce.3".
_COLLECTIVE = re.compile(rf'({"|".join(OPS)})(-start|-done)?(\.\d+)*')


def bench_scaling(
  preset: str | None, batch: int, steps: int, dtype: str, remat: str
) -> list[Figures]:
  """Measures the step on 1, 2, 4 and 8 devices, and on those of 2 processes.

  Args:
    preset: a published model; None is a small one.
    batch: pairs of each device.
    steps: the number of steps that are measured.
    dtype, remat: as in `model` of configs/base.py.
  Returns:
    For each, 'seconds_per_step'; 'collective_share', the part of the devices'
    time in a trace that is spent in collectives, and 'waiting_share', that in
    which these wait for other devices of their process; 'collective_bytes',
    what the compiled step exchanges, whole, and 'collectives', how often by
    kind.
  Raises:
    UsageError: the preset is not known.
    FailureError: a process failed, or did not end in 15 minutes.
  """
  work = _Work(preset, batch, steps, dtype, remat)
  rows = [_measure(work, jax.devices()[:count]) for count in DEVICES]
  return [*rows, _measure_together(work, DEVICES[-1])]


@dataclasses.dataclass(frozen=True)
class _Work:
  preset: str | None
  batch: int
  steps: int
  dtype: str
  remat: str

  def model(self) -> CLIPConfig:
    """Returns a published shape, or towers of 4 blocks of width 256.

    Texts have 16 tokens, the least for which a CPU's step is compiled: with
    more, it would hold a program for each of several lengths.
    """
    model: Any = presets.resolve(self.preset or 'ViT-B/32')
    image, text = model.image, model.text
    if self.preset is None:
      few = {'width': 256, 'depth': 4, 'heads': 4}
      image = dataclasses.replace(image, **few)
      vocabulary = {'vocab_size': 8_192, 'end_token': 8_191}
      text = dataclasses.replace(text, **few, **vocabulary)
    text = dataclasses.replace(text, context_length=16)
    return dataclasses.replace(model, image=image, text=text)


def _measure(work: _Work, devices: list[jax.Device]) -> Figures:
  """Measures the step on some devices."""
  mesh = make_mesh(devices=devices)
  step = paper_step(work.model(), mesh, 1_000, work.dtype, work.remat)
  batch = work.batch * len(devices)
  compiled = step.compile(batch)
  call = repeated(compiled, step.init(), step.pairs(batch))
  seconds = median_seconds(call, work.steps)
  exchanges = [
    exchange
    for exchange in collectives(
      hlo.parse(compiled.as_text() or ''), len(devices)
    )
    if len(exchange.group) > 1
  ]
  counts: dict[str, int] = {}
  for exchange in exchanges:
    counts[exchange.op] = counts.get(exchange.op, 0) + exchange.times
  return {
    'devices': len(devices),
    'processes': jax.process_count(),
    'batch': batch,
    'seconds_per_step': seconds,
    'examples_per_second': batch / seconds,
    **_shares(call, len(mesh.local_devices)),
    'collective_bytes': sum(x.bytes * x.times for x in exchanges),
    'collectives': counts,
  }


def _shares(call: Callable[[], None], devices: int) -> Figures:
  """Traces some calls; returns the parts of the devices' time by `_times`."""
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder, profiler_options=options):
      for _ in range(_TRACED_STEPS):
        with jax.profiler.TraceAnnotation(_STEP):
          call()
    [path] = Path(folder).glob('**/*.xplane.pb')
    data = jax.profiler.ProfileData.from_file(str(path))
  times = _times(
    (event.name, event.duration_ns)
    for plane in data.planes
    for line in plane.lines
    for event in line.events
  )
  whole = times['step'] * devices
  return {
    'collective_share': times['collective'] / whole,
    'waiting_share': times['waiting'] / whole,
  }


def _times(events: Iterator[tuple[str, float]]) -> dict[str, float]:
  """Sums the durations of a CPU's trace that belong to steps and collectives.

  A collective has an event on each device's thread; waiting for the other
  devices is a part of it.
  """
  times = {'step': 0.0, 'collective': 0.0, 'waiting': 0.0}
  for name, duration in events:
    if name == _STEP:
      times['step'] += duration
    elif _COLLECTIVE.fullmatch(name):
      times['collective'] += duration
    elif name.startswith('Wait') and 'LaunchOnDevice' not in name:
      times['waiting'] += duration
  return times


def _measure_together(work: _Work, devices: int) -> Figures:
  """Measures the step on the devices of several processes on this machine."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  request = json.dumps(
    [dataclasses.asdict(work), devices // _PROCESSES], allow_nan=False
  )
  processes = [
    subprocess.Popen(
      [sys.executable, '-m', __name__, request],
      env={
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        ADDRESS: address,
        COUNT: str(_PROCESSES),
        INDEX: str(index),
      },
      stdout=subprocess.PIPE,
      text=True,
    )
    for index in range(_PROCESSES)
  ]
  try:
    answers = [
      process.communicate(timeout=_SECONDS)[0] for process in processes
    ]
  except subprocess.TimeoutExpired:
    raise FailureError(
      f'the {_PROCESSES} processes did not end in {_SECONDS:.0f} seconds.'
    ) from None
  finally:
    for process in processes:
      process.kill()
  for index, process in enumerate(processes):
    if process.returncode:
      raise FailureError(
        f'process {index} of {_PROCESSES} ended with code '
        f'{process.returncode}; what it said is above.'
      )
  return json.loads(answers[0].splitlines()[-1])


def main(request: str) -> None:
  """Measures as one of several processes; the first prints the figures."""
  work, devices = json.loads(request)
  use_cpu_devices(devices)
  with join_cluster(detect_cluster()):
    row = _measure(_Work(**work), jax.devices())
    if is_first_process():
      print(json.dumps(row), flush=True)


if __name__ == '__main__':
  main(sys.argv[1])
