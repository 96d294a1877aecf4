"""`clip-jax eval --suite=paper`: every evaluator on every data set here.

examples:
  clip-jax eval --model=runs/emoji --suite=paper --out=runs/emoji/evaluation
  clip-jax eval --model=ViT-B-32.pt --suite=paper --out=DIR \\
      --published=ViT-B/32 --root=/data
  clip-jax eval --model=REF --suite=paper --out=DIR --datasets=digits \\
      --tasks=zero_shot,few_shot
  clip-jax eval --model=REF --suite=paper --out=DIR \\
      --datasets=cifar10,mine=folder:pets#test,captions=csv:pairs.csv

Run again with the same --out, it goes on: results that depend on nothing that
has changed are kept. The page and the tables have what was asked for last.
"""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from clip_jax.commands import common_flags, model_flags, printing
from clip_jax.errors import (
  FailureError,
  UsageError,
  check_choice,
  print_notes,
  print_warnings,
)

if TYPE_CHECKING:
  from clip_jax.evaluation.suite import Pair, Result

SUITES = ('paper',)
FLAGS = ('datasets', 'tasks', 'published')  # beside --out
_NAMED_FAILURES = 5
_METRICS_SHOWN = 5  # in a line


def define_flags(values: flags.FlagValues) -> None:
  """Adds the flags of the suite alone."""

  def text(name: str, what: str) -> None:
    flags.DEFINE_string(name, None, what, flag_values=values)

  def names(name: str, what: str) -> None:
    flags.DEFINE_list(name, [], what, flag_values=values)

  text('suite', 'paper: every task on every data set that is here')
  common_flags.define_path(
    values,
    'out',
    'of --suite: the folder of results, features and the page; of a task: a '
    '.json file',
  )
  names('datasets', 'of --suite: only these; your own as NAME=SPEC')
  names('tasks', 'of --suite: only these')
  text('published', "of --suite: which of the paper's models this is")


def run(values: flags.FlagValues, *, options: Any, root: Path | None) -> None:
  """Evaluates, and writes results.json, results.csv and report.html.

  Args:
    values: with those of `define_flags` and of the model.
    options: `Options` as the other flags say, without a cache.
    root: the folder of data sets; None for the default.
  Raises:
    UsageError: a name is unknown, or there is no data set here.
    FailureError: at the end, where some evaluations failed.
  """
  check_choice('suite', values.suite, SUITES)
  name = common_flags.require(values.out, 'out', 'name a folder for results')
  out = common_flags.folder_of(name, 'out')
  assert out
  reference = model_flags.reference_of(values)
  _check_published(values.published)

  from clip_jax.evaluation.datasets.presence import data_root
  from clip_jax.evaluation.suite import SuiteCall, evaluate_suite
  from clip_jax.evaluation.suite.collected import warnings_of
  from clip_jax.evaluation.suite.selection import (
    PACKAGES,
    make_suite,
    select_evaluations,
    training_data,
  )
  from clip_jax.inference.references import recognise
  from clip_jax.parallel.distributed import is_first_process
  from clip_jax.report.page import environment
  from clip_jax.report.suite import write_page

  recognise(reference)  # before anything is made
  selection = select_evaluations(
    values.datasets,
    values.tasks,
    root=root or data_root(),
    captions=tuple(values.captions),
    training=options.overlap.train or training_data(Path(reference)),
  )
  if selection.selected and is_first_process():
    absent = selection.plan.absent.items()
    print_notes(f'left out {name}: {reason}' for name, reason in absent)
  model = model_flags.load_over_devices(values)
  suite = make_suite(
    selection, model, dtype=values.dtype, options=options, folder=out
  )
  call = SuiteCall(
    model=reference,
    command=command_of(values),
    seed=options.seed,
    step=model.step,
    published=values.published,
    root=str(selection.root),
    overlap_with=selection.training or None,
    environment=environment((*PACKAGES, 'matplotlib')),
  )
  collected = evaluate_suite(suite, selection.plan, call, print_progress)
  if is_first_process():
    write_page(out / 'report.html', collected, suite.open)
    print_warnings(warnings_of(collected))
    if values.json:
      printing.print_json(collected)
    else:
      print(out / 'report.html')
  _refuse_failures(collected, out)


def command_of(values: flags.FlagValues) -> str:
  """Returns the command line that does this again."""
  words = [
    shlex.quote(word)
    for name in sorted(values)
    if values[name].present and name not in ('json', 'debug')
    for word in values[name].serialize().split('\n')
  ]
  return ' '.join(['clip-jax eval', *words])


def print_progress(
  index: int, total: int, pair: 'Pair', result: 'Result | None', kept: bool
) -> None:
  """Prints a line on stderr as a pair begins (on a terminal) and ends."""
  head = f'[{index + 1}/{total}] {pair}'
  if result is None:
    if sys.stderr.isatty():
      print(f'{head} …', file=sys.stderr)
    return
  print(f'{head}: {_summary(result, kept)}', file=sys.stderr)


def _summary(result: 'Result', kept: bool) -> str:
  if result.error is not None:
    return f'failed: {result.error}'
  metrics = [
    f'{name} {printing.metric(name, value).strip()}'
    + printing.chance(result.chance.get(name))
    for name, value in result.metrics.items()
    if not name.endswith(('_low', '_high'))  # of intervals
  ]
  shown = ', '.join(metrics[:_METRICS_SHOWN])
  return f'{shown} ({"kept" if kept else f"{result.seconds:.1f} s"})'


def _check_published(name: str | None) -> None:
  from clip_jax.evaluation.datasets.published import published

  if name is not None and published(name, 'imagenet', 'zero_shot') is None:
    raise UsageError(
      f"published={name!r}: the paper's models are RN50, RN101, RN50x4, "
      'RN50x16, RN50x64, ViT-B/32, ViT-B/16, ViT-L/14 and ViT-L/14@336.'
    )


def _refuse_failures(collected: Any, out: Path) -> None:
  failed = [x for x in collected['results'] if x['error'] is not None]
  if not failed:
    return
  named = '; '.join(
    f'{x["dataset"]} {x["task"]}: {x["error"].rstrip(".")}'
    for x in failed[:_NAMED_FAILURES]
  )
  more = '; …' if len(failed) > _NAMED_FAILURES else ''
  raise FailureError(
    f'{len(failed)} of {len(collected["results"])} evaluations failed ({named}'
    f'{more}); the others are in {out}.'
  )
