"""The table of evaluators: a name, and what measures under it.

Each is called as `find_evaluator(name)(encoder, dataset, options)` and returns
an `Evaluation`; `encoder` is a `Model` or anything else with its encode
methods.
"""

import difflib
import importlib

from clip_jax.errors import UsageError
from clip_jax.evaluation.encoder import (
  Encoder,
  Evaluation,
  Evaluator,
  Options,
)

__all__ = [
  'EVALUATORS',
  'Encoder',
  'Evaluation',
  'Evaluator',
  'Options',
  'find_evaluator',
]

# Task to the module whose `evaluate` measures it: imported when it is asked
# for, as several bring scikit-learn along.
EVALUATORS: dict[str, str] = {
  'zero_shot': 'zero_shot',  # the right name among all names
  'prompt_gain': 'prompt_gain',  # what templates add to bare names
  'retrieval': 'retrieval',  # the right text for an image, and back
  'overlap': 'overlap',  # with what the model was trained on
  'bias': 'bias',  # which names the pictures of each group are given
  'linear_probe': 'linear_probe',  # logistic regression on the features
  'few_shot': 'few_shot',  # the same, on a few examples of each class
  'robustness': 'distribution_shift',  # what a shift of the data costs
}


def find_evaluator(task: str) -> Evaluator:
  """The evaluator of a task.

  Raises:
    UsageError: there is none of that name.
  """
  if task not in EVALUATORS:
    near = difflib.get_close_matches(task, EVALUATORS, n=1)
    raise UsageError(
      f'no task {task!r}: choose one of {", ".join(EVALUATORS)}'
      + (f'; the nearest is {near[0]}.' if near else '.')
    )
  module = importlib.import_module(f'{__name__}.{EVALUATORS[task]}')
  return module.evaluate
