"""Runs the paper's evaluations of a model on the data of this machine.

`plan.py` chooses the evaluations of each data set, `run.py` runs them and
`stored.py` keeps each result, `collected.py` puts them together and
`spreadsheet.py` makes a table of them. `clip_jax/report/suite.py` draws the
page.
"""

from collections.abc import Mapping
from typing import Any

from clip_jax.evaluation.suite import stored
from clip_jax.evaluation.suite.collected import SuiteCall, collect
from clip_jax.evaluation.suite.plan import Pair, Plan, make_plan
from clip_jax.evaluation.suite.run import PairCallback, Suite, run
from clip_jax.evaluation.suite.spreadsheet import to_csv
from clip_jax.evaluation.suite.stored import Result
from clip_jax.files import to_utf8, write_bytes
from clip_jax.parallel.distributed import is_first_process

__all__ = [
  'Pair',
  'PairCallback',
  'Plan',
  'Result',
  'Suite',
  'SuiteCall',
  'evaluate_suite',
  'make_plan',
]

JSON_FILE, CSV_FILE = 'results.json', 'results.csv'


def evaluate_suite(
  suite: Suite, plan: Plan, call: SuiteCall, callback: PairCallback
) -> Mapping[str, Any]:
  """Runs a plan and writes results.json and results.csv.

  Each is replaced as a whole. Of several processes, which encode together,
  process 0 writes.

  Args:
    suite: what is evaluated, and where results are kept.
    plan: the pairs to evaluate.
    setting: what the suite was asked to do, to be shown.
    callback: is called as a pair begins and as it ends.
  Returns:
    The content of results.json.
  """
  results = run(suite, plan.pairs, callback)
  collected = collect(call, plan, results, suite.table)
  if is_first_process():
    for name, text in (
      (JSON_FILE, stored.dump(collected, indent=1)),
      (CSV_FILE, to_csv(collected)),
    ):
      write_bytes(suite.folder / name, to_utf8(text), make_folder=True)
  return collected
