"""All of the paper's evaluations of a model, on what data this machine has.

`plan.py` says what is asked of which data set, `run.py` runs it and `stored.py`
keeps each result, `collected.py` puts them together, and `figures.py` (rows),
`draw.py` (figures), `page.py` and `spreadsheet.py` show them.
"""

from collections.abc import Mapping
from typing import Any

import jax

from clip_jax.evaluation.suite import stored
from clip_jax.evaluation.suite.collected import Setting, collect
from clip_jax.evaluation.suite.plan import Pair, Plan, make_plan
from clip_jax.evaluation.suite.run import Say, Suite, run
from clip_jax.evaluation.suite.stored import Result

__all__ = [
  'Pair',
  'Plan',
  'Result',
  'Say',
  'Setting',
  'Suite',
  'evaluate_suite',
  'make_plan',
]

JSON_FILE, CSV_FILE, PAGE_FILE = 'results.json', 'results.csv', 'report.html'


def evaluate_suite(
  suite: Suite, plan: Plan, setting: Setting, say: Say
) -> Mapping[str, Any]:
  """Runs a plan and writes results.json, results.csv and report.html.

  Each is there whole or as it was before. Of several processes, which encode
  together, process 0 writes.

  Args:
    suite: what is evaluated, and where results are kept.
    plan: which pairs.
    setting: what was asked for, to be shown.
    say: is told of each pair as it begins and as it ends.
  Returns:
    What results.json has.
  """
  results = run(suite, plan.pairs, say)
  collected = collect(setting, plan, results, suite.table)
  if jax.process_index() == 0:
    write_outputs(suite, collected)
  return collected


def write_outputs(suite: Suite, collected: Mapping[str, Any]) -> None:
  """The three files, from what was collected."""
  # Matplotlib and scipy are imported where something is drawn.
  from clip_jax.evaluation.suite.spreadsheet import to_csv
  from clip_jax.report.suite import render
  from clip_jax.report.suite_images import fetch_pictures

  suite.folder.mkdir(parents=True, exist_ok=True)
  pictures = fetch_pictures(collected, suite.open)
  for file, text in (
    (JSON_FILE, stored.dump(collected, indent=1)),
    (CSV_FILE, to_csv(collected)),
    (PAGE_FILE, render(collected, pictures)),
  ):
    stored.replace_text(suite.folder / file, text)
