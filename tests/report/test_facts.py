"""The words and numbers of a report."""

from clip_jax.report import facts


def test_a_held_out_loss_that_does_not_rise_is_not_blamed():
  rows = [
    {'step': i, 'eval/loss/loss': x} for i, x in enumerate((3.0, 2.0, 2.05))
  ]
  assert facts.overfitting(rows) == ''
  assert facts.overfitting([]) == ''


def test_a_resumed_run_does_not_count_its_pause():
  rows = [
    {'step': 10, 'time': 0.0, 'train/examples_per_second': 10.0},
    {'step': 20, 'time': 9e9, 'train/examples_per_second': 20.0},
  ]
  assert facts.training_seconds(rows, 100) == 150
