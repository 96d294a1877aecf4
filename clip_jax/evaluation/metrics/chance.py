"""What guessing gives: the level beside which an accuracy has to be read."""

from collections.abc import Iterable

# Of up to so many classes, five are half or more: top-5 says nothing.
FEW_CLASSES = 10


def ranks_of(classes: int) -> tuple[int, ...]:
  """Returns the k of the top-k accuracies that say something."""
  return (1, 5) if classes > FEW_CLASSES else (1,)


def chance_levels(
  names: Iterable[str], classes: int, metric: str | None = None
) -> dict[str, float]:
  """Returns what answers drawn evenly among all classes would give.

  Args:
    names: of the numbers of an evaluation.
    classes: how many there are to choose from.
    metric: by which all of them are measured, as `metrics.METRICS` names it;
      None takes each for the name of its own.
  Returns:
    Fractions, of those numbers that guessing has a level for: none of a mean
    average precision, which depends on the pictures.
  """
  top1, top5 = 1 / classes, min(1.0, 5 / classes)
  levels = {
    'accuracy': top1,
    'top1': top1,
    'top5': top5,
    'mean_top1_top5': (top1 + top5) / 2,
    'mean_per_class': top1,
    'roc_auc': 0.5,
  }
  return {
    name: levels[metric or name] for name in names if (metric or name) in levels
  }
