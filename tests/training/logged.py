"""What a run has written of its steps."""

from pathlib import Path

from clip_jax.training.metrics import read_metrics


def logged(workdir: Path, name: str) -> list[tuple[int, float]]:
  """(step, value) of a number wherever it was logged, in order of writing."""
  return [
    (row['step'], row[name]) for row in read_metrics(workdir) if name in row
  ]


def losses(workdir: Path) -> list[tuple[int, float]]:
  """(step, loss) of each logged step."""
  return logged(workdir, 'train/loss')
