"""Trains variants of a recipe on the same data, and draws how they compare.

usage:
  clip-jax study --config=configs/NAME.py --workdir=DIR [--study=NAME,…]
      [--seeds=N] [--config.KEY=VALUE …] [--json]

examples:
  clip-jax study --config=configs/ablation.py --workdir=runs/ablation
  clip-jax study --config=configs/ablation.py --workdir=runs/ablation \\
      --study=projection,temperature,tower,batch_size,captions
  clip-jax study --config=configs/ablation.py --workdir=runs/short \\
      --seeds=1 --config.total_steps=60

The file has STUDIES, a table from the name of a study to those of its variants,
and get_config(VARIANT) (configs/ablation.py: figure 2 of the CLIP paper and the
other choices of its section 2.3). Without --study, the first one is made. What
the command line says of the config holds for all variants. Variants are
compared by their zero-shot accuracy, unless the file has METRICS, a table from
the name of a measure to its metric (configs/vlm_emoji.py).

The workdir gets a run directory for each variant and seed, results.json, and
for each study a figure, STUDY.png: the measure over images processed, with
95 % intervals over the seeds. Of several measures, each has a figure,
STUDY_METRIC.png. SIGTERM or Ctrl-C saves and ends; the same
command then goes on from there, and skips the runs that are done.
"""

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from clip_jax.commands import common_flags
from clip_jax.commands.config_file import (
  config_path,
  define_config,
  parse,
  read_config,
  stated_fields,
)
from clip_jax.errors import UsageError, plural

if TYPE_CHECKING:
  from clip_jax.benchmarks.study import Curve

__all__ = ['define_flags', 'parse', 'run']

Studies = Mapping[str, Sequence[str]]
# Measures, as they are called, and the metrics that they are.
Metrics = Mapping[str, str]


def define_flags(values: flags.FlagValues) -> None:
  """Adds this verb's flags."""
  define_config(values)
  common_flags.define_path(
    values, 'workdir', 'the folder of all runs, made if missing'
  )
  flags.DEFINE_list(
    'study', [], 'which of STUDIES; the first, if left out', flag_values=values
  )
  flags.DEFINE_integer(
    'seeds', 3, 'runs of each variant', lower_bound=1, flag_values=values
  )
  common_flags.define_json(values)


def run(values: flags.FlagValues, words: list[str]) -> None:
  """Trains what is missing, and prints and draws all that is there."""
  common_flags.no_words('study', words)
  if values.config is None:
    raise UsageError('no --config: name a file, such as configs/ablation.py.')
  common_flags.require(values.workdir, 'workdir', 'name a folder for the runs')
  common_flags.folder_of(values.workdir, 'workdir')
  path = config_path(values)
  flag: Any = values['config']
  argument = flag.config_filename.partition(':')[2]
  if argument:
    raise UsageError(
      f'--config={path}:{argument}: a study trains the variants of STUDIES: '
      f'leave out :{argument}, and choose with --study.'
    )
  module = _module_of(path)
  studies = _chosen(_studies_of(module, path), values.study)
  names = dict.fromkeys(name for own in studies.values() for name in own)
  stated = {name: _field(values.config, name) for name in stated_fields(values)}
  variants = {name: _variant(path, name, stated) for name in names}

  from clip_jax.benchmarks import study
  from clip_jax.parallel.devices import keep_freed_memory, use_cpu_devices
  from clip_jax.report.study import write_figure

  keep_freed_memory()
  use_cpu_devices(values.config.mesh.cpu_devices)
  workdir, seeds = Path(values.workdir), range(values.seeds)
  metrics: Metrics = getattr(
    module, 'METRICS', {'zero-shot accuracy': study.METRIC}
  )
  measured = _named(studies, metrics)
  curves: dict[str, list[Curve]] = {}

  def draw() -> None:
    for key, (name, measure) in measured.items():
      read = (
        study.read_curve(workdir, one, variants[one], seeds, metrics[measure])
        for one in studies[name]
      )
      curves[key] = [curve for curve in read if curve is not None]
      if curves[key]:
        rows = [dataclasses.asdict(curve) for curve in curves[key]]
        write_figure(workdir / f'{key}.png', rows, measure)
    study.write_results(workdir, curves)

  if not study.run_study(variants, seeds, workdir, draw):
    print('stopped and saved; the same command goes on from there.')
    return
  if values.json:
    print((workdir / study.RESULTS).read_text(encoding='utf-8'), end='')
    return
  for key, own in curves.items():
    _print_study(*measured[key], own)
  print(f'figures and {study.RESULTS}: {workdir}')


def _module_of(path: Path) -> Any:
  """Returns the module of a config file."""
  spec = importlib.util.spec_from_file_location(path.stem, path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)  # it ran before, when --config was read
  return module


def _studies_of(module: Any, path: Path) -> Studies:
  """Returns the table of studies of a config file.

  Raises:
    UsageError: it has none.
  """
  studies = getattr(module, 'STUDIES', None)
  if not studies:
    raise UsageError(
      f'config file {path} has no STUDIES: a table from the name of a study to '
      'those of its variants, as in configs/ablation.py.'
    )
  return studies


def _chosen(studies: Studies, asked: Sequence[str]) -> Studies:
  """Returns the studies that were asked for, or the first."""
  unknown = [name for name in asked if name not in studies]
  if unknown:
    raise UsageError(
      f'--study={unknown[0]}: choose some of {", ".join(studies)}.'
    )
  return {name: studies[name] for name in asked or [next(iter(studies))]}


def _named(studies: Studies, metrics: Metrics) -> dict[str, tuple[str, str]]:
  """Returns the study and the measure of each figure, by its name."""
  if len(metrics) == 1:
    [measure] = metrics
    return {name: (name, measure) for name in studies}
  return {
    f'{name}_{metric.rpartition("/")[2]}': (name, measure)
    for name in studies
    for measure, metric in metrics.items()
  }


def _variant(path: Path, name: str, stated: Mapping[str, Any]) -> Any:
  """Returns the config of a variant, with what the command line says."""
  config = read_config(f'{path}:{name.replace(" ", "_")}')
  config.update_from_flattened_dict(stated)
  return config


def _field(config: Any, name: str) -> Any:
  for key in name.split('.'):
    config = config[key]
  return config


def _print_study(name: str, measure: str, curves: 'Sequence[Curve]') -> None:
  """Prints the result of each variant, and what it took."""
  from clip_jax.benchmarks.study import images_to_reach
  from clip_jax.report.page import percent

  seeds = plural(curves[0].seeds, 'seed')
  print(f'{name}: {measure}, mean of {seeds}')
  lowest = min(curve.mean[-1] for curve in curves)
  for curve in sorted(curves, key=lambda curve: -curve.mean[-1]):
    interval = ''
    if curve.seeds > 1:
      interval = f' ({percent(curve.low[-1])} to {percent(curve.high[-1])})'
    images = images_to_reach(curve, lowest)
    reached = f'{images:,.0f} images to {percent(lowest)}' if images else ''
    print(
      f'  {curve.variant:24}{percent(curve.mean[-1]):>8}{interval:22}'
      f'{curve.images[-1]:>10,} images, {curve.examples_per_second:,.0f}/s; '
      f'{reached}'
    )
