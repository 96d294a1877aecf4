"""A study: variants of a recipe trained on the same data, with several seeds.

Each run has a directory of its own and resumes from it, so that a study that
was stopped goes on where it was.
"""

import dataclasses
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.errors import UsageError
from clip_jax.evaluation.metrics.intervals import mean_interval
from clip_jax.files import to_bytes, write_bytes
from clip_jax.training.config import Config
from clip_jax.training.loop import train
from clip_jax.training.metrics import read_metrics, series
from clip_jax.training.writers import Outputs

METRIC = 'eval/zero_shot/top1'  # of a study whose recipe names no others
RESULTS = 'results.json'


@dataclasses.dataclass(frozen=True)
class Curve:
  """Accuracy of a variant over the images processed, of one or more seeds.

  Attributes:
    variant: its name.
    images: processed at each measurement.
    mean: accuracy over the seeds there, a fraction.
    low, high: the 95 % interval of that mean (Student's t over the seeds); of
      one seed, of which nothing is known, the accuracy itself.
    seeds: how many.
    examples_per_second: of training, the median of all logged steps.
  """

  variant: str
  images: list[int]
  mean: list[float]
  low: list[float]
  high: list[float]
  seeds: int
  examples_per_second: float


def run_study(
  variants: Mapping[str, Config],
  seeds: Sequence[int],
  workdir: Path,
  finished: Callable[[], None] = lambda: None,
) -> bool:
  """Trains every variant with every seed, the first seed of all first.

  Args:
    variants: configs by name; their `seed` is replaced.
    seeds: of weights, data and augmentation.
    workdir: has a run directory for each.
    finished: is called after each run.
  Returns:
    False where a run was asked to stop, and has saved.
  Raises:
    UsageError: a variant is not measured, or a run directory is that of another
      config.
  """
  for name, config in variants.items():
    if 'zero_shot' not in config.evaluation.tasks:
      raise UsageError(
        f'variant {name!r} has evaluation.tasks='
        f'{tuple(config.evaluation.tasks)}: a study compares zero_shot.'
      )
  runs = [(name, seed) for seed in seeds for name in variants]
  for number, (name, seed) in enumerate(runs, start=1):
    config = variants[name].copy_and_resolve_references()
    config.seed = seed
    print(f'run {number} of {len(runs)}: {name}, seed {seed}', file=sys.stderr)
    if not train(config, run_folder(workdir, name, seed), Outputs()).finished:
      return False
    finished()
  return True


def run_folder(workdir: Path, variant: str, seed: int) -> Path:
  """Returns the run directory of a variant with a seed."""
  return workdir / re.sub(r'\W+', '_', variant) / f'seed_{seed}'


def read_curve(
  workdir: Path,
  variant: str,
  config: Config,
  seeds: Sequence[int],
  metric: str = METRIC,
) -> Curve | None:
  """Returns the measurements that the finished runs of a variant have made.

  They are those at steps where all of these runs were measured, which may have
  been trained with other `evaluation.every_steps`. None where no run has
  finished.

  Args:
    metric: one of metrics.jsonl, a fraction.
  """
  runs: list[dict[int, float]] = []
  speeds = []
  for seed in seeds:
    rows = read_metrics(run_folder(workdir, variant, seed))
    steps, accuracies = series(rows, metric)
    if not steps or steps[-1] < config.total_steps:
      continue
    runs.append(dict(zip(steps, accuracies, strict=True)))
    speeds += series(rows, 'train/examples_per_second')[1]
  if not runs:
    return None
  common = sorted(set.intersection(*map(set, runs)))
  mean, low, high = [], [], []
  for step in common:
    accuracies = np.array([run[step] for run in runs])
    interval = (accuracies.mean(),) * 3
    if len(runs) > 1:
      interval = mean_interval(accuracies)
    for ends, value in zip((mean, low, high), interval, strict=True):
      ends.append(float(value))
  return Curve(
    variant=variant,
    images=[step * config.data.batch_size for step in common],
    mean=mean,
    low=low,
    high=high,
    seeds=len(runs),
    examples_per_second=float(np.median(speeds)) if speeds else 0.0,
  )


def images_to_reach(curve: Curve, accuracy: float) -> float | None:
  """Returns how many images a variant processed until it had an accuracy.

  It is interpolated between measurements; None where it never was reached.
  """
  images, mean = [0, *curve.images], [0.0, *curve.mean]
  for i in range(1, len(mean)):
    if mean[i] >= accuracy:
      rise = mean[i] - mean[i - 1]
      part = (accuracy - mean[i - 1]) / rise if rise else 0.0
      return images[i - 1] + part * (images[i] - images[i - 1])
  return None


def write_results(workdir: Path, studies: Mapping[str, list[Curve]]) -> None:
  """Writes all curves, by study, to WORKDIR/results.json."""
  data: dict[str, Any] = {
    name: [dataclasses.asdict(curve) for curve in curves]
    for name, curves in studies.items()
  }
  write_bytes(workdir / RESULTS, to_bytes(data))
