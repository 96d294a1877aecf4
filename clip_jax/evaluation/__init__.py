"""The table of evaluators: a name, and what measures under it.

Each is called as `EVALUATORS[name](encoder, source, options)` and returns an
`Evaluation`; `encoder` is a `Model` or anything else with its encode methods.
"""

from clip_jax.errors import UsageError
from clip_jax.evaluation import retrieval, zero_shot
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

EVALUATORS: dict[str, Evaluator] = {
  'zero_shot': zero_shot.evaluate,  # the right name among all names
  'retrieval': retrieval.evaluate,  # the right text for an image, and back
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
