"""What an evaluator sees of a model, and what it gives back."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from PIL import Image

from clip_jax.evaluation.dataset import Dataset
from clip_jax.progress import Progress, no_progress

if TYPE_CHECKING:
  from clip_jax.evaluation.features.cache import FeatureCache
  from clip_jax.evaluation.tasks.bias_designs import Designs


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


@runtime_checkable
class PoolingEncoder(Encoder, Protocol):
  """An encoder that also tells what its image tower had before the space."""

  def encode_image_with_pooled(
    self, images: Iterable[Image.Image]
  ) -> tuple[Float[np.ndarray, 'N D'], Float[np.ndarray, 'N E']]:
    """Rows of any length, and those of `encode_image`, of one pass."""
    ...


@dataclasses.dataclass(frozen=True)
class Options:
  """How to evaluate; each evaluator says which of these it reads.

  Attributes:
    templates: of the prompts for a class, each with a slot '{}'; None takes
      the data set's own, or the bare name where it has none.
    max_corrupt_records: unreadable pictures to leave out before giving up.
    progress: shows the progress of what goes through the encoders.
    cache: keeps features between evaluators and calls; None keeps none.
    seed: of what is drawn: examples, splits.
    seeds: how many draws a few-shot result is the mean of.
    shots: examples a class.
    C: of probes, the inverse of their regularisation; None chooses it by the
      paper's sweep.
    probe_iterations: steps of a probe's solver at most.
    joint_space: of probes, to fit them on unit-length features of the joint
      space, and not on those before it as the paper does (appendix A.3).
    start_from_text: of probes, to start from the text tower's weights, which
      are of the joint space; see `linear_probe` and `few_shot`.
    baselines: a CSV file of standard models, for `robustness`; see
      `read_baselines`.
    overlap_with: a SPEC of what the model was trained on, for `overlap`; ''
      is the data set's train split.
    detector: of near-duplicates: 'perceptual', or 'learned'.
    max_distance: bits between the hashes of near-duplicates, 0 to 64.
    min_similarity: cosine of the features of near-duplicates, -1 to 1.
    designs: names to choose among, for `bias`: design -> kind -> names; None
      takes those of the paper. See `bias_designs`.
  """

  templates: tuple[str, ...] | None = None
  max_corrupt_records: int = 100
  progress: Progress = no_progress
  cache: 'FeatureCache | None' = None
  seed: int = 0
  seeds: int = 3
  shots: tuple[int, ...] = (1, 2, 4, 8, 16)
  C: float | None = None
  probe_iterations: int = 1000
  joint_space: bool = False
  start_from_text: bool = False
  baselines: str | None = None
  overlap_with: str = ''
  detector: str = 'perceptual'
  max_distance: int = 8
  min_similarity: float = 0.95
  designs: 'Designs | None' = None

  def templates_for(self, dataset: Dataset) -> tuple[str, ...]:
    """Those asked for, else the data set's, else the name itself."""
    return self.templates or dataset.templates or ('{}',)


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What was measured.

  Attributes:
    metrics: names to numbers; rates are fractions, 0 to 1.
    chance: of those of them that are accuracies, what guessing would give;
      see `chance_levels`.
    records: one dict an example, for the report; see the evaluator.
    corrupt: id to reason, of the pictures that were left out.
    tables: rows for figures by name: curves, bins, pairs; see the evaluator.
      Of those that ask with prompts there is 'warnings': 'warning', a line
      that a user has to see; see `prompt_warnings`.
  """

  metrics: dict[str, float]
  records: list[dict[str, Any]]
  corrupt: dict[str, str] = dataclasses.field(default_factory=dict)
  tables: dict[str, list[dict[str, Any]]] = dataclasses.field(
    default_factory=dict
  )
  chance: dict[str, float] = dataclasses.field(default_factory=dict)


Evaluator = Callable[[Encoder, Dataset, Options], Evaluation]
