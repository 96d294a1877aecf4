"""The table of evaluators: a name, and what measures under it.

Each is called as `EVALUATORS[name](encoder, source, options)` and returns an
`Evaluation`; `encoder` is a `Model` or anything else with its encode methods.
"""

import importlib

from clip_jax.errors import UsageError
from clip_jax.evaluation import retrieval, zero_shot
from clip_jax.evaluation.dataset import Dataset
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


def _when_asked(module: str) -> Evaluator:
  """The evaluator of a module that imports scipy, and so only when it runs."""

  def evaluate(
    encoder: Encoder, dataset: Dataset, options: Options
  ) -> Evaluation:
    found = importlib.import_module(f'clip_jax.evaluation.{module}')
    return found.evaluate(encoder, dataset, options)

  return evaluate


EVALUATORS: dict[str, Evaluator] = {
  'zero_shot': zero_shot.evaluate,  # the right name among all names
  'retrieval': retrieval.evaluate,  # the right text for an image, and back
  'overlap': _when_asked('overlap'),  # with what the model was trained on
  'bias': _when_asked('bias'),  # which names the pictures of a group are given
}


def find_evaluator(task: str) -> Evaluator:
  """The evaluator of a task.

  Raises:
    UsageError: there is none of that name.
  """
  if task not in EVALUATORS:
    raise UsageError(
      f'no task {task!r}: choose one of {", ".join(EVALUATORS)}.'
    )
  return EVALUATORS[task]
