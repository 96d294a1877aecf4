"""The types that an evaluator is given, and the one that it returns."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from clip_jax.data.sources import Source
from clip_jax.evaluation.dataset import Dataset
from clip_jax.progress import Progress, no_progress


@runtime_checkable
class Encoder(Protocol):
  """A model as an evaluator sees it: any two encoders into one space."""

  @property
  def logit_scale(self) -> float:
    """The factor of cosine similarities before a softmax: 1 / temperature."""
    ...

  def encode_image(
    self, images: Iterable[Image.Image]
  ) -> Float[np.ndarray, 'N E']:
    """Returns unit-length rows, in order; reads the iterable as needed."""
    ...

  def encode_text(self, texts: Iterable[str]) -> Float[np.ndarray, 'N E']:
    """Returns unit-length rows, in order."""
    ...


@runtime_checkable
class PoolingEncoder(Encoder, Protocol):
  """An encoder that also tells what its image tower has before projection."""

  def encode_image_with_pooled(
    self, images: Iterable[Image.Image]
  ) -> tuple[Float[np.ndarray, 'N D'], Float[np.ndarray, 'N E']]:
    """Returns pooled rows of any length, and those of `encode_image`."""
    ...


@dataclasses.dataclass(frozen=True)
class Features:
  """The features of N images, in the order of their source.

  Attributes:
    embeddings: float32, of unit length, in the joint space.
    ids: of the records.
    captions: of each image, its texts.
    labels: of the source; -1 for a record without one.
    label_sets: of multi-label data (VOC2007), instead of `labels`: the labels
      of each image.
    difficult: of such data, labels of each image that are neither right nor
      wrong there.
    corrupt: id to reason, of the images that could not be read.
    pooled: float32, of any length: what the image tower has before its
      projection into the joint space; None where it is not known.
  """

  embeddings: Float[np.ndarray, 'N E']
  ids: list[str]
  captions: list[list[str]]
  labels: Int[np.ndarray, ' N']
  label_sets: list[list[int]] | None = None
  difficult: list[list[int]] | None = None
  corrupt: dict[str, str] = dataclasses.field(default_factory=dict)
  pooled: Float[np.ndarray, 'N D'] | None = None

  def __len__(self) -> int:
    return len(self.ids)

  def select(self, rows: np.ndarray) -> 'Features':
    """Returns the features of some images.

    Args:
      rows: indices, or a mask.
    """
    indices = np.arange(len(self))[rows].tolist()
    values = {x.name: getattr(self, x.name) for x in dataclasses.fields(self)}
    arrays = {
      name: value[indices]
      for name, value in values.items()
      if isinstance(value, np.ndarray)
    }
    lists = {
      name: [value[i] for i in indices]
      for name, value in values.items()
      if isinstance(value, list)
    }
    return dataclasses.replace(self, **arrays, **lists)


@runtime_checkable
class FeatureStore(Protocol):
  """A source of features for evaluators, which computes each once.

  Attributes:
    folder: where it keeps them, for what else is kept; None of memory.
  """

  @property
  def folder(self) -> Path | None: ...

  def images(self, source: Source, options: 'Options') -> Features:
    """Returns the features of a source, as `read_features` does."""
    ...

  def texts(
    self, texts: Sequence[str], options: 'Options'
  ) -> Float[np.ndarray, 'N E']:
    """Returns the features of texts, as `text_features` does."""
    ...


@dataclasses.dataclass(frozen=True)
class ProbeOptions:
  """Settings of the probes of linear_probe, few_shot and robustness.

  Attributes:
    C: the inverse of their regularisation; None chooses it by the paper's
      sweep.
    max_iterations: steps of the solver at most.
    joint_space: fit on unit-length features of the joint space, and not on
      those before it as the paper does (appendix A.3).
    start_from_text: start from the text tower's weights, which are of the
      joint space; see `linear_probe` and `few_shot`.
  """

  C: float | None = None
  max_iterations: int = 1000
  joint_space: bool = False
  start_from_text: bool = False


@dataclasses.dataclass(frozen=True)
class FewShotOptions:
  """Settings of the few-shot probes of few_shot and robustness.

  Attributes:
    examples_per_class: one probe is fitted for each of these numbers.
    seeds: how many draws a result is the mean of.
  """

  examples_per_class: tuple[int, ...] = (1, 2, 4, 8, 16)
  seeds: int = 3


@dataclasses.dataclass(frozen=True)
class RobustnessOptions:
  """Settings of robustness: the models that are compared with.

  Attributes:
    baselines: a CSV file of standard models; see `read_baselines`.
  """

  baselines: str | None = None


@dataclasses.dataclass(frozen=True)
class OverlapOptions:
  """Settings of overlap: how near-duplicates are found.

  Attributes:
    train: a SPEC of what the model was trained on; '' is the data set's train
      split.
    detector: 'perceptual', or 'learned'.
    max_distance: bits between the hashes of near-duplicates, 0 to 64.
    min_similarity: cosine of the features of near-duplicates, -1 to 1.
  """

  train: str = ''
  detector: str = 'perceptual'
  max_distance: int = 8
  min_similarity: float = 0.95


@dataclasses.dataclass(frozen=True)
class BiasOptions:
  """Settings of bias: the names that a model chooses among.

  Attributes:
    designs: sets of names: design -> kind -> names; None takes those of the
      paper. See `bias_designs`.
  """

  designs: Mapping[str, Mapping[str, Sequence[str]]] | None = None


@dataclasses.dataclass(frozen=True)
class Options:
  """Settings of an evaluation: common ones, and those of single tasks.

  Attributes:
    templates: of the prompts for a class, each with a slot '{}'; None takes
      the data set's own, or the bare name where it has none.
    max_corrupt_records: unreadable images to leave out before giving up.
    progress: shows how far the encoders are.
    cache: keeps features between evaluators and calls; None keeps none.
    seed: of what is drawn: examples, splits.
    probe, few_shot, robustness, overlap, bias: of these tasks alone.
  """

  templates: tuple[str, ...] | None = None
  max_corrupt_records: int = 100
  progress: Progress = no_progress
  cache: FeatureStore | None = None
  seed: int = 0
  probe: ProbeOptions = ProbeOptions()
  few_shot: FewShotOptions = FewShotOptions()
  robustness: RobustnessOptions = RobustnessOptions()
  overlap: OverlapOptions = OverlapOptions()
  bias: BiasOptions = BiasOptions()

  def templates_for(self, dataset: Dataset) -> tuple[str, ...]:
    """Returns the templates of the options, else the data set's, else '{}'."""
    return self.templates or dataset.templates or ('{}',)


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The result of an evaluation.

  Attributes:
    metrics: names to numbers; rates are fractions, 0 to 1.
    records: one dict an example, for the report; see the evaluator.
    corrupt: id to reason, of the images that were left out.
    tables: rows for figures by name: curves, bins, pairs; see the evaluator.
      Of those that ask with prompts there is 'warnings': 'warning', a line
      that a user has to see; see `prompt_warnings`.
    chance: of those metrics that are accuracies, what guessing would give;
      see `chance_levels`.
  """

  metrics: dict[str, float]
  records: list[dict[str, Any]]
  corrupt: dict[str, str] = dataclasses.field(default_factory=dict)
  tables: dict[str, list[dict[str, Any]]] = dataclasses.field(
    default_factory=dict
  )
  chance: dict[str, float] = dataclasses.field(default_factory=dict)


Evaluator = Callable[[Encoder, Dataset, Options], Evaluation]
