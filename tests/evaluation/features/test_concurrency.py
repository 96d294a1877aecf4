"""Two streams at once: both arrive, and neither outlives the other's error."""

import threading

import jax
import pytest

from clip_jax.evaluation import Options
from clip_jax.evaluation.features.concurrency import encode_concurrently


@pytest.fixture
def one_device(monkeypatch):
  monkeypatch.setattr(jax, 'device_count', lambda: 1)


def collect(unit):
  return lambda options: list(options.progress([unit] * 3, 3, unit))


def endless(options):
  """Ends when it is told to."""
  forever = iter(lambda: threading.Event().wait(0.001), True)
  for _ in options.progress(forever, 0, 'items'):
    pass


def test_both_results_come_with_their_progress(one_device):
  seen = []

  def progress(items, total, unit, *, done=0):
    seen.append((total, unit, done))
    return items

  result = encode_concurrently(
    Options(progress=progress), collect('texts'), collect('images')
  )
  assert result == (['texts'] * 3, ['images'] * 3)
  assert sorted(seen) == [(3, 'images', 0), (3, 'texts', 0)]


def test_they_run_at_the_same_time(one_device):
  met = threading.Barrier(2, timeout=60)
  encode_concurrently(Options(), lambda _: met.wait(), lambda _: met.wait())


def test_over_several_devices_the_first_comes_first():
  order = []
  encode_concurrently(
    Options(), lambda _: order.append(1), lambda _: order.append(2)
  )
  assert jax.device_count() == 8 and order == [1, 2]


@pytest.mark.parametrize('error', [ValueError('why'), KeyboardInterrupt()])
def test_the_error_of_one_ends_the_other(one_device, error):
  def fail(options):
    raise error

  for pair in ((fail, endless), (endless, fail)):
    with pytest.raises(type(error)) as caught:
      encode_concurrently(Options(), *pair)
    assert caught.value is error
  assert not [x for x in threading.enumerate() if x.name.startswith('texts')]
