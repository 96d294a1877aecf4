"""Evaluates a model on a data set, or on all data sets that are here.

usage:
  clip-jax eval --model=REF --task=TASK --data=NAME|SPEC [--out=FILE.json]
  clip-jax eval --model=REF --suite=paper --out=DIR \\
      [--datasets=NAME,MINE=SPEC] [--tasks=TASK,TASK]
  clip-jax eval --list

tasks:
  zero_shot     the right name among all: accuracy, calibration, confusions
  prompt_gain   what templates add to bare class names
  retrieval     the texts of an image, the image of a text: recall at 1, 5, 10
  linear_probe  logistic regression on the features
  few_shot      the same on a few examples a class, and where it meets zero-shot
  robustness    what a shift of the data costs, and adapting to its classes
  overlap       accuracy with and without images that were trained on
  captioning    how often a decoder writes the caption that an image has
  bias          which names the images of each group are given

examples:
  clip-jax eval --model=runs/emoji --task=zero_shot --data=tfds:emoji#test
  clip-jax eval --model=runs/emoji --task=retrieval \\
      --data=tfds:emoji#test --json
  clip-jax eval --model=REF --task=zero_shot --data=cifar10 --out=cifar10.json
  clip-jax eval --model=REF --task=zero_shot --data=folder:pets \\
      --templates="a photo of a {}, a type of pet." --class_names=names.txt
  clip-jax eval --model=REF --task=few_shot --data=folder:pets/test \\
      --train=folder:pets/train --shots=1,4,16 --cache=features
  clip-jax eval --model=REF --task=retrieval --data=csv:pairs.csv
  clip-jax eval --model=REF --suite=paper --out=DIR \\
      --datasets=cifar10,pets=folder:pets#test,mine=csv:pairs.csv

A data set is a NAME of --list, or a SPEC. One of the list brings its own class
names and templates; --templates and --class_names go before them. In brackets
are intervals of 95 % (overlap: 99.5 %); chance is what guessing gives, and
top-5 is reported only where there are more than ten classes. --out keeps also
the tables behind figures and, of all tasks but prompt_gain, how each image was
answered. With --cache the features of a model and a data set are made once for
all tasks, and a killed evaluation goes on.
Several processes share the work as those of train do; the first one prints.
Images that cannot be read are left out and counted, up to --max_corrupt.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from clip_jax.commands import (
  common_flags,
  eval_options,
  eval_suite,
  model_flags,
  printing,
)
from clip_jax.errors import UsageError, one_line, print_notes, print_warnings
from clip_jax.files import to_bytes, write_bytes

if TYPE_CHECKING:
  from clip_jax.evaluation import Evaluation, Options
  from clip_jax.evaluation.dataset import Dataset
  from clip_jax.inference.model import Model

_TASK_FLAGS = ('task', 'data', 'train', 'validation', 'class_names', 'cache')
_BOUNDS = ('_low', '_high')
_DETAILS = 5  # confusions that are printed


def define_flags(values: flags.FlagValues) -> None:
  """Adds this verb's flags."""
  model_flags.define_model(values)
  for name, what in {
    'task': 'what to measure',
    'data': 'a data set: a NAME of --list, or SCHEME:LOCATION[#SPLIT]',
    'train': 'a SPEC to learn from, of probes',
    'validation': 'a SPEC to tune on, of probes',
  }.items():
    flags.DEFINE_string(name, None, what, flag_values=values)
  for name, what in {
    'root': 'the folder of data sets, ROOT/NAME',
    'class_names': 'a file with a name a line, in the order of the labels',
    'cache': 'a folder to keep features in',
  }.items():
    common_flags.define_path(values, name, what)
  flags.DEFINE_bool('list', False, 'list the data sets', flag_values=values)
  eval_options.define_flags(values)
  common_flags.define_captions(values)
  common_flags.define_encoding(values)
  common_flags.define_json(values)
  eval_suite.define_flags(values)


def run(values: flags.FlagValues, words: list[str]) -> None:
  """Prints the metrics."""
  common_flags.no_words('eval', words)
  root = Path(values.root) if values.root else None
  if values.list:
    from clip_jax.commands.eval_list import print_list

    print_list(root, values.json)
    return
  model_flags.reference_of(values)

  from clip_jax.parallel.distributed import detect_cluster, join_cluster

  with join_cluster(detect_cluster()):
    if values.suite is not None:
      for flag in _TASK_FLAGS:
        if values[flag].value:
          raise UsageError(f'--{flag} is of --task, and this is a --suite.')
      eval_suite.run(values, options=eval_options.options_of(values), root=root)
    else:
      _run_task(values, root)


def _run_task(values: flags.FlagValues, root: Path | None) -> None:
  """Measures one task on one data set, and prints it."""
  from clip_jax.evaluation import EVALUATORS, find_evaluator

  reference = model_flags.reference_of(values)
  task = common_flags.require(
    values.task, 'task', f'one of {", ".join(EVALUATORS)}'
  )
  name = common_flags.require(
    values.data, 'data', 'name a data set, as in --data=tfds:emoji#test'
  )
  for flag in eval_suite.FLAGS:
    if values[flag].value:
      raise UsageError(f'--{flag} is of --suite, and this is one --task.')
  out = common_flags.file_of(values.out, 'out', '.json')
  cache = common_flags.folder_of(values.cache, 'cache')
  evaluate = find_evaluator(task)
  options = eval_options.options_of(values)
  class_names = _read_class_names(values.class_names)

  from clip_jax.inference.references import recognise
  from clip_jax.parallel.distributed import is_first_process

  recognise(reference)  # a wrong one is told before a data set is built
  dataset = _open_dataset(values, root, class_names)
  notices = dataset.notices
  model = model_flags.load_over_devices(values)
  if cache:
    options = _with_cache(options, cache, model, values.dtype)
  result = evaluate(model, dataset, options)
  if not is_first_process():
    return
  print_notes(x for x in dataset.notices if x not in notices)
  _print_warnings(result)
  about = {
    'task': task,
    'data': name,
    'model': reference,
    'step': model.step,
    'metrics': result.metrics,
    'chance': result.chance,
    'corrupt': result.corrupt,
  }
  if values.json:
    printing.print_json(about)
  else:
    step = '' if model.step is None else f' at step {model.step:,}'
    print(f'{task} on {dataset.title or name}, {reference}{step}')
    print('\n'.join([*metric_lines(result), *detail_lines(result)]))
  if out is not None:  # last: where it cannot be written, numbers are printed
    details = {'records': result.records, 'tables': result.tables}
    write_bytes(out, to_bytes({**about, **details}))


def _open_dataset(
  values: flags.FlagValues, root: Path | None, class_names: list[str] | None
) -> 'Dataset':
  """Opens --data with its other splits, and prints its notices."""
  from clip_jax.data.sources import same_data
  from clip_jax.evaluation.datasets.opening import open_dataset
  from clip_jax.parallel.distributed import is_first_process

  dataset = open_dataset(
    values.data,
    root=root,
    train=values.train,
    validation=values.validation,
    class_names=class_names,
    captions=tuple(values.captions),
  )
  if is_first_process():
    print_notes(dataset.notices)
    if values.train and same_data(values.train, values.data):
      print_warnings(
        [
          f'--train={values.train} is the data that is evaluated: what was '
          'learned from is not held out, and counts as right answers.'
        ]
      )
  return dataset


def _print_warnings(result: 'Evaluation') -> None:
  """Prints on stderr what is corrupt, doubtful, or good to know."""
  printing.report_corrupt(result.corrupt)
  warnings = result.tables.get('warnings', [])
  print_warnings(row['warning'] for row in warnings)
  notes = result.tables.get('notes', [])
  print_notes(row['note'] for row in notes)


def metric_lines(result: 'Evaluation') -> list[str]:
  """Returns a line a metric, with its interval and the level of chance."""
  metrics = result.metrics
  bounds = {f'{name}{end}' for name in metrics for end in _BOUNDS}
  shown = {name: x for name, x in metrics.items() if name not in bounds}
  width = max(map(len, shown))
  lines: list[str] = []
  for name, value in shown.items():
    line = f'  {name:<{width}}  {printing.metric(name, value)}'
    low, high = (metrics.get(f'{name}{end}') for end in _BOUNDS)
    if low is not None and high is not None:
      line += f'  [{100 * low:.2f}, {100 * high:.2f}]'
    if name in result.chance:
      line += f' {printing.chance(result.chance[name])}'
    lines.append(line)
  return lines


def detail_lines(result: 'Evaluation') -> list[str]:
  """Returns lines on confusions and groups, to print below the metrics."""
  lines: list[str] = []
  confusions = result.tables.get('confusions', [])[:_DETAILS]
  if confusions:
    lines.append('taken for one another most often:')
  for row in confusions:
    times = f'{row["times"]} time{"s" if row["times"] > 1 else ""}'
    other = 'another ' if row['right'] == row['given'] else ''
    lines.append(
      f'  {one_line(row["right"])} taken for {other}{one_line(row["given"])}: '
      f'{times}'
    )
  rates: dict[tuple[str, str], list[str]] = {}
  for row in result.tables.get('rates', []):
    rate = f'{row["kind"]} {100 * row["rate"]:.1f} %'
    rates.setdefault((row['design'], row['group']), []).append(rate)
  design = None
  for (name, group), kinds in rates.items():
    if len(kinds) == 1:
      continue  # all images of the group have this name
    if name != design:
      lines.append(f'{name}, of the images of each group:')
      design = name
    lines.append(f'  {one_line(group)}: {", ".join(kinds)}')
  return lines


def _read_class_names(path: str | None) -> list[str] | None:
  """Returns the lines of a file, of which none may be empty."""
  if path is None:
    return None
  lines = common_flags.lines_of('class_names', path)
  for expected, number in enumerate(lines.numbers, 1):
    if expected != number:
      raise UsageError(
        f'--class_names: {path}, line {expected} is empty: a name a line.'
      )
  return list(lines)


def _with_cache(
  options: 'Options', folder: Path, model: 'Model', dtype: str
) -> 'Options':
  from clip_jax.evaluation.features.cache import (
    FeatureCache,
    identity_of,
  )

  cache = FeatureCache(folder, model, identity_of(model, dtype))
  return dataclasses.replace(options, cache=cache)
