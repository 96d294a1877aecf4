"""Averages the weights of a model and of what fine-tuning made of it.

usage:
  clip-jax interpolate A B --alpha=NUMBER[,NUMBER…] --out=DIR
  clip-jax interpolate A B --alpha=0,0.5,1 --data=SPEC --others=SPEC,SPEC \\
      --out=DIR
  clip-jax interpolate REF REF… --soup=uniform|greedy [--data=SPEC] --out=DIR

examples:
  clip-jax interpolate ViT-B-32.pt runs/flowers --alpha=0.5 --out=robust
  clip-jax interpolate runs/emoji runs/icons --alpha=0,0.25,0.5,0.75,1 \\
      --data=folder:icons/test --others=tfds:emoji#test --out=curve
  clip-jax interpolate runs/a runs/b runs/c --soup=uniform --out=soup
  clip-jax interpolate runs/a runs/b runs/c --soup=greedy \\
      --data=folder:icons/validation --out=soup

With --alpha the weights are those of A times (1 - alpha), and those of B times
alpha: WiSE-FT (arXiv 2109.01903), where A is what B was fine-tuned from. With
--soup they are the mean of all models (arXiv 2203.05482), or of those that the
mean gains by on --data, which should not be the test set: the best one, and of
the others, best first, each that leaves the accuracy where it is or higher.

Both towers, the projections, the logarithm of the temperature, and the running
mean and variance of a ResNet's batch norms are all averaged alike, in float64.
The models may be of any kind; shapes, vocabulary and preprocessing have to be
the same.

DIR is a model for every verb, a run directory with one checkpoint; its
interpolation.json says what it was made of. Of several alphas each has a folder
DIR/alpha_NUMBER. With --data and --others all are evaluated by the names of the
classes (zero_shot), and DIR/curve.html and curve.json show accuracy on the one
against accuracy on the others, with 95 % intervals.
"""

from typing import TYPE_CHECKING, Any

from absl import flags

from clip_jax.commands import common_flags, model_flags, printing
from clip_jax.errors import UsageError, check_choice, print_notes
from clip_jax.progress import show_progress

if TYPE_CHECKING:
  from collections.abc import Sequence
  from pathlib import Path

  from clip_jax.evaluation.averages import AccuracyMeasure
  from clip_jax.evaluation.dataset import Dataset
  from clip_jax.inference.loading import Loaded
  from clip_jax.models.description import Description

_SOUPS = ('uniform', 'greedy')


def define_flags(values: flags.FlagValues) -> None:
  """Adds this verb's flags."""
  model_flags.define_reading(values)
  flags.DEFINE_list(
    'alpha', [], 'how far from A to B: numbers from 0 to 1', flag_values=values
  )
  flags.DEFINE_string(
    'soup', None, 'instead: uniform or greedy', flag_values=values
  )
  flags.DEFINE_string(
    'data',
    None,
    'a data set with classes: of the curve, or of a greedy soup',
    flag_values=values,
  )
  flags.DEFINE_list(
    'others', [], 'other data sets, of the curve', flag_values=values
  )
  common_flags.define_templates(values, default=None)
  common_flags.define_path(values, 'out', 'the directory to make')
  common_flags.define_encoding(values)
  common_flags.define_json(values)


def run(values: flags.FlagValues, words: list[str]) -> None:
  """Averages, and says what was written."""
  out = common_flags.require(values.out, 'out', 'name a directory to make')
  alphas = _check_call(values, words)

  from clip_jax.evaluation import averages
  from clip_jax.files import new_folder
  from clip_jax.inference.interpolation import check_alike
  from clip_jax.inference.references import recognise

  folder = new_folder(out)
  for reference in words:
    recognise(reference)  # a wrong one is told before another is read
  datasets = [
    _open(name) for name in (values.data, *values.others) if name is not None
  ]
  loaded = _read(values, words)
  measure = _measure(values, check_alike(loaded), datasets)
  models = [model.variables for model in loaded]
  if alphas:
    rows = []
    for row in averages.write_line(words, models, alphas, measure, folder):
      rows.append(row)
      if not values.json:
        print(_line(row))
    result = {'models': words, 'points': rows}
    if datasets:
      target, *others = (dataset.name for dataset in datasets)
      result |= {'data': target, 'others': others}
      result['curve'] = _write_curve(folder, result)
      if not values.json:
        print(result['curve'])
  else:
    result = averages.write_soup(words, models, measure, folder)
    if not values.json:
      _print_soup(result)
  if values.json:
    printing.print_json(result)


def _check_call(values: flags.FlagValues, words: list[str]) -> list[float]:
  """Returns the alphas; there are none for a soup.

  Raises:
    UsageError: a flag is missing, impossible, or has no effect here.
  """
  if bool(values.alpha) == bool(values.soup):
    raise UsageError(
      'interpolate needs --alpha=NUMBER or --soup=uniform|greedy, and one of '
      'them.'
    )
  if values.soup:
    check_choice('soup', values.soup, _SOUPS)
    if len(words) < 2:
      raise UsageError(f'a soup of {len(words)} models: name two or more.')
    if (values.soup == 'greedy') != bool(values.data):
      raise UsageError(
        '--soup=greedy needs held-out --data=SPEC with classes, and '
        '--soup=uniform none.'
      )
  elif len(words) != 2:
    raise UsageError(
      f'--alpha is between two models, and there are {len(words)}: name A and '
      'B.'
    )
  elif bool(values.data) != bool(values.others):
    raise UsageError(
      'a curve needs both --data=SPEC, what B was fine-tuned for, and '
      '--others=SPEC.'
    )
  if values.soup and values.others:
    raise UsageError('--others is of a curve, and this is a --soup.')
  names = [values.data, *values.others]
  repeated = [name for name in values.others if names.count(name) > 1]
  if repeated:
    raise UsageError(
      f'--data and --others name {repeated[0]} twice: name different data.'
    )
  alphas = _alphas(values.alpha)
  if values.others and len(alphas) < 2:
    raise UsageError(
      f'--alpha={alphas[0]:g} makes no curve: give more, as in --alpha=0,0.5,1.'
    )
  return alphas


def _alphas(words: 'Sequence[str]') -> list[float]:
  alphas = []
  for word in words:
    try:
      alpha = float(word)
    except ValueError:
      alpha = -1.0
    if not 0 <= alpha <= 1:
      raise UsageError(f'--alpha={word}: use a number from 0 to 1, as 0.5.')
    alphas.append(alpha)
  if len({f'{alpha:g}' for alpha in alphas}) < len(alphas):
    raise UsageError(f'--alpha={",".join(words)}: a number comes twice.')
  return sorted(alphas)


def _open(name: str) -> 'Dataset':
  """Opens a data set, and refuses one without classes."""
  from clip_jax.evaluation.datasets.opening import open_dataset

  dataset = open_dataset(name)
  dataset.require_classes('zero_shot')
  print_notes(dataset.notices)
  return dataset


def _read(values: flags.FlagValues, words: list[str]) -> 'list[Loaded]':
  import numpy as np

  return [
    model_flags.read_model(values, word, dtype=np.dtype(np.float32))
    for word in words
  ]


def _measure(
  values: flags.FlagValues,
  description: 'Description',
  datasets: 'list[Dataset]',
) -> 'AccuracyMeasure':
  """Returns how the flags want accuracy measured."""
  from clip_jax.evaluation import Options
  from clip_jax.evaluation.averages import AccuracyMeasure
  from clip_jax.parallel.devices import use_compilation_cache

  use_compilation_cache()
  templates = None
  if values.templates:
    templates = tuple(common_flags.templates_of(values))
  options = Options(
    templates=templates,
    max_corrupt_records=values.max_corrupt,
    progress=show_progress,
  )
  return AccuracyMeasure(
    description, datasets, options, values.dtype, values.batch_size
  )


def _line(row: dict[str, Any]) -> str:
  """Returns a line about one alpha: what was written, and its accuracies."""
  accuracies = ''.join(
    f'  {name} {100 * x["top1"]:.2f} % [{100 * x["low"]:.2f}, '
    f'{100 * x["high"]:.2f}]'
    for name, x in row.get('accuracy', {}).items()
  )
  return f'alpha {row["alpha"]:<5g} -> {row["out"]}{accuracies}'


def _write_curve(folder: 'Path', result: dict[str, Any]) -> str:
  """Writes curve.json and curve.html; returns the path of the page."""
  from clip_jax.files import to_bytes, write_bytes
  from clip_jax.report.interpolation import write_page

  write_bytes(folder / 'curve.json', to_bytes(result))
  write_page(folder / 'curve.html', result)
  return str(folder / 'curve.html')


def _print_soup(result: dict[str, Any]) -> None:
  for i, name in enumerate(result['models']):
    alone = ''
    if 'top1_of_each' in result:
      alone = f'  {100 * result["top1_of_each"][i]:.2f} % alone'
    print(f'{result["weights"][i]:.3f}  {name}{alone}')
  reached = 'the mean'
  if 'top1' in result:
    reached = f'{100 * result["top1"]:.2f} % on {result["data"]}'
  print(f'{reached} -> {result["out"]}')
