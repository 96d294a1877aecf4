"""Evaluates a model: the names of the tasks, and the evaluator of each.

Each is called as `find_evaluator(name)(encoder, dataset, options)` and returns
an `Evaluation`; `encoder` is a `Model` or anything else with its encode
methods.
"""

import difflib
import importlib

from clip_jax.errors import UsageError
from clip_jax.evaluation.types import (
  Encoder,
  Evaluation,
  Evaluator,
  Options,
)

__all__ = [
  'EVALUATORS',
  'NEED_OTHER_DATA',
  'Encoder',
  'Evaluation',
  'Evaluator',
  'Options',
  'find_evaluator',
]

# Each name is that of a module of `tasks`, whose `evaluate` measures it. It is
# imported when it is asked for, as several bring scikit-learn along.
EVALUATORS: tuple[str, ...] = (
  'zero_shot',  # the right name among all names
  'prompt_gain',  # what templates add to bare names
  'retrieval',  # the right text for an image, and back
  'linear_probe',  # logistic regression on the features
  'few_shot',  # the same, on a few examples of each class
  'robustness',  # what a shift of the data costs
  'overlap',  # with what the model was trained on
  'captioning',  # the caption that a decoder writes, and the image's own
  'bias',  # which names the images of each group are given
)

# Tasks that need more than the data they measure on: examples to learn from, or
# what these data are a shift of. A training run has neither.
NEED_OTHER_DATA = ('linear_probe', 'few_shot', 'robustness', 'overlap')


def find_evaluator(task: str) -> Evaluator:
  """Returns the evaluator of a task.

  Raises:
    UsageError: there is none of that name.
  """
  if task not in EVALUATORS:
    near = difflib.get_close_matches(task, EVALUATORS, n=1)
    raise UsageError(
      f'no task {task!r}: choose one of {", ".join(EVALUATORS)}'
      + (f'; the nearest is {near[0]}.' if near else '.')
    )
  module = importlib.import_module(f'{__name__}.tasks.{task}')
  return module.evaluate
