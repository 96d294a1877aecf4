"""A run that hangs says where."""

import io
import re
import threading
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np

from clip_jax.parallel.mesh import make_mesh
from clip_jax.training import watchdog as watchdog_module
from clip_jax.training.prefetch import Prefetcher
from clip_jax.training.watchdog import Watchdog
from tests.waiting import PATIENCE, Clock, until


def reports(stream):
  return stream.getvalue().splitlines()


def wait_for(stream, count):
  until(lambda: len(reports(stream)) >= count)


def test_a_source_that_blocks_is_named_with_the_stack():
  stream, go_on = io.StringIO(), threading.Event()

  def blocking_source():
    yield {'tokens': np.zeros((8, 4), np.int32)}
    go_on.wait(PATIENCE)
    yield {'tokens': np.zeros((8, 4), np.int32)}

  def release():
    wait_for(stream, 1)
    go_on.set()

  releaser = threading.Thread(target=release)
  with Watchdog(0.2, stream) as watchdog:
    feed = Prefetcher(
      blocking_source(), make_mesh(), 8, lambda done: None, watchdog,
      'input (data.train=folder:slow)',
    )  # fmt: skip
    feed.next()
    releaser.start()
    feed.submit(1, {'loss': jnp.float32(0)})  # hangs until it is reported
    feed.drain()
  releaser.join()
  first = reports(stream)[0]
  assert re.match(r'warning: no step for \d+ s: waiting for input ', first)
  assert '(data.train=folder:slow); at ' in first
  assert 'blocking_source (test_watchdog.py:' in first


def test_reports_come_at_twice_the_time_and_stop_with_a_step(monkeypatch):
  stream, clock = io.StringIO(), Clock()
  with Watchdog(0.1, stream) as watchdog, watchdog.activity('evaluating'):
    monkeypatch.setattr(
      watchdog_module, 'time', SimpleNamespace(monotonic=clock)
    )
    watchdog.step_finished()
    for said, passed in (
      (0, 0.09), (1, 0.02), (1, 0.08), (2, 0.02), (2, 0.18), (3, 0.02),
    ):  # fmt: skip
      clock.pass_by(passed)
      looks = clock.asked
      until(lambda looks=looks: clock.asked > looks + 2)
      assert len(reports(stream)) == said
    watchdog.step_finished()
    clock.pass_by(0.09)
    looks = clock.asked
    until(lambda: clock.asked > looks + 2)
    assert len(reports(stream)) == 3
  assert all('evaluating' in line for line in reports(stream))


def test_what_is_done_is_nested_and_silence_is_the_default():
  before = set(threading.enumerate())
  stream = io.StringIO()
  with Watchdog(0.0, stream) as watchdog:
    with watchdog.activity('outer'), watchdog.activity('inner'):
      started = set(threading.enumerate()) - before
      assert 'watchdog' not in {thread.name for thread in started}
    assert not reports(stream)
