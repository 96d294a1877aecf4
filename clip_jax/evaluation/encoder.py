"""What an evaluator sees of a model, and what it gives back."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from PIL import Image

from clip_jax.data.sources import Source

# (an iterable, how many will come, what they are) -> the same, watched
Watch = Callable[[Iterable[Any], int, str], Iterable[Any]]


@runtime_checkable
class Encoder(Protocol):
  """A model as an evaluator sees it: any two encoders into one space."""

  @property
  def logit_scale(self) -> float:
    """What cosine similarities are multiplied by before a softmax."""
    ...

  def encode_image(
    self, images: Iterable[Image.Image]
  ) -> Float[np.ndarray, 'N E']:
    """Unit-length rows, in order; the iterable is read as it is needed."""
    ...

  def encode_text(self, texts: Iterable[str]) -> Float[np.ndarray, 'N E']:
    """Unit-length rows, in order."""
    ...


def unwatched(items: Iterable[Any], total: int, unit: str) -> Iterable[Any]:
  """A `Watch` that shows nothing."""
  del total, unit
  return items


@dataclasses.dataclass(frozen=True)
class Options:
  """How to evaluate.

  Attributes:
    templates: of the prompts for a class, each with a slot '{}'.
    max_corrupt_records: unreadable pictures to leave out before giving up.
    watch: shows the progress of what goes through the encoders.
  """

  templates: tuple[str, ...] = ('{}',)
  max_corrupt_records: int = 100
  watch: Watch = unwatched


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What was measured.

  Attributes:
    metrics: names to numbers; rates are fractions, 0 to 1.
    records: one dict an example, for the report; see the evaluator.
    corrupt: id to reason, of the pictures that were left out.
  """

  metrics: dict[str, float]
  records: list[dict[str, Any]]
  corrupt: dict[str, str] = dataclasses.field(default_factory=dict)


Evaluator = Callable[[Encoder, Source, Options], Evaluation]
