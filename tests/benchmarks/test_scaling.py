"""`clip-jax bench train --scaling`: steps on ever more devices of a CPU."""

import json

import jax
import pytest

from clip_jax.__main__ import main
from clip_jax.benchmarks import scaling
from clip_jax.models.counting import abstract_variables


def test_a_trace_tells_collectives_from_other_work():
  events = [
    (scaling._STEP, 100.0), ('all-reduce.3', 20.0), ('all-gather', 10.0),
    ('end: all-reduce.3', 1.0), ('reduce-scatter.1.2', 5.0), ('dot.4', 50.0),
    ('Wait: pending_threads=1/4', 7.0), ('Wait for rendezvous callback', 2.0),
    ('Wait for LaunchOnDevice completion', 90.0), ('reduce.1', 9.0),
  ]  # fmt: skip
  times = scaling._times(iter(events))
  assert times == {'step': 100.0, 'collective': 35.0, 'waiting': 9.0}


@pytest.mark.slow
def test_scaling_over_devices_and_processes(capsys, monkeypatch):
  monkeypatch.setattr(scaling, 'DEVICES', (1, 2))
  argv = ['bench', 'train', '--scaling', '--batch=1', '--steps=1', '--json']
  assert main(argv) == 0
  rows = json.loads(capsys.readouterr().out)
  assert [(r['devices'], r['processes'], r['batch']) for r in rows] == [
    (1, 1, 1), (2, 1, 2), (2, 2, 2),
  ]  # fmt: skip
  alone, *together = rows
  assert alone['collective_bytes'] == 0 and not alone['collectives']
  assert alone['collective_share'] < 0.01
  model = scaling._Work(None, 1, 1, 'float32', 'none').model()
  variables = jax.tree.leaves(abstract_variables(model))
  for row in together:
    assert row['collectives']['all-reduce'] > 0
    # Devices exchange the gradients of all parameters in float32, and features.
    assert row['collective_bytes'] > 4 * sum(array.size for array in variables)
    assert 0 <= row['waiting_share'] <= row['collective_share'] < 1
    assert row['collective_share'] > 0 < row['seconds_per_step']
