"""SIGTERM is a question asked between steps; the second one is an order."""

import signal

import pytest

from clip_jax.training.stop_signal import StopSignal


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_remembered_and_named(number):
  before = signal.getsignal(number)
  with StopSignal() as stop:
    assert not stop.requested(1)
    signal.raise_signal(number)
    assert stop.requested(2)
    assert stop.name == number.name
    assert signal.getsignal(number) is before
  assert signal.getsignal(number) is before


def test_the_second_interrupt_interrupts():
  with StopSignal():
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)


def test_no_signal_leaves_the_handlers_as_they_were():
  before = signal.getsignal(signal.SIGTERM)
  with StopSignal():
    assert signal.getsignal(signal.SIGTERM) is not before
  assert signal.getsignal(signal.SIGTERM) is before
