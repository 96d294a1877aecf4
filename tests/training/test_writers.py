"""What a run writes by default, and what its report is told."""

from pathlib import Path
from types import SimpleNamespace

from clip_jax.evaluation import Evaluation
from clip_jax.report import training as page
from clip_jax.training.metrics import MetricsFile, read_metrics
from clip_jax.training.tensorboard import TensorBoard
from clip_jax.training.writers import FinishedRun, Outputs, default_outputs


def test_without_a_choice_only_the_numbers_are_written():
  assert Outputs() == Outputs(writers=(MetricsFile,), report=None)


def test_by_default_numbers_events_and_a_report_are_written():
  outputs = default_outputs()
  assert outputs.writers == (MetricsFile, TensorBoard)
  assert outputs.report is not None


def test_every_default_writer_follows_the_protocol(tmp_path):
  for make_writer in default_outputs().writers:
    writer = make_writer(tmp_path)
    writer.write(1, {'train/loss': 2.0})
    writer.write(2, {'train/loss': 1.0})
    writer.truncate_after(1)
    writer.close()
  assert [row['step'] for row in read_metrics(tmp_path)] == [1]
  assert list((tmp_path / 'tensorboard').iterdir())


def test_the_report_is_told_what_the_run_was(monkeypatch):
  calls = []
  monkeypatch.setattr(
    page, 'write_report', lambda *words, **named: calls.append((words, named))
  )
  report = default_outputs('clip-jax train …').report
  assert report is not None
  zero_shot = Evaluation({'top1': 0.5}, [])
  config = SimpleNamespace(
    seed=7, evaluation=SimpleNamespace(templates=['a {}'])
  )
  run = FinishedRun(
    Path('local'), 'gs://bucket/run', config, 'model', None,
    {'zero_shot': zero_shot, 'retrieval': Evaluation({}, [])},
  )  # fmt: skip
  report(run)
  (((folder, model, source), named),) = calls
  assert (folder, model, source) == (Path('local'), 'model', None)
  assert named == {
    'evaluation': zero_shot,
    'command': 'clip-jax train …',
    'templates': ('a {}',),
    'seed': 7,
    'shown_as': 'gs://bucket/run',
  }
