"""The held-out examples of a report: pictures, texts, features, predictions."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from clip_jax.data.images import CorruptImageError, decode
from clip_jax.data.sources import Source
from clip_jax.evaluation import Encoder, Evaluation
from clip_jax.evaluation.metrics.ranking import top_classes
from clip_jax.inference.classifier import zero_shot_weights

GIVEN_NAMES = 5


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What the model calls a picture, and the right answer.

  Attributes:
    right: the name, or the picture's first caption.
    top: names (or captions) and probabilities, best first.
    also: the picture's other captions, which are right as well.
  """

  right: str
  top: list[tuple[str, float]]
  also: tuple[str, ...] = ()

  @property
  def answers(self) -> tuple[str, ...]:
    """All right answers."""
    return (self.right, *self.also)

  @property
  def rank(self) -> int | None:
    """The place of the first right answer among `top`, from 0, or None."""
    ranks = (i for i, (name, _) in enumerate(self.top) if name in self.answers)
    return next(ranks, None)


@dataclasses.dataclass(frozen=True)
class Examples:
  """N held-out examples; what has the same index belongs together."""

  images: list[Any]  # encoded bytes
  texts: list[str]  # one caption, or the label's name; '' without either
  features: Float[np.ndarray, 'N E']  # unit length
  predictions: list[Prediction] | None  # None without labels and captions
  choices: int  # names, or captions, to choose from
  captioned: bool = False  # the answers are captions and not names

  def __len__(self) -> int:
    return len(self.images)


def no_examples() -> Examples:
  """Of a run without held-out data."""
  return Examples([], [], np.zeros((0, 1), np.float32), None, 0)


def read_examples(
  model: Encoder,
  source: Source,
  *,
  evaluation: Evaluation | None,
  templates: Sequence[str],
  most: int,
  seed: int,
) -> Examples:
  """Reads and encodes each example once.

  Examples whose picture cannot be read are left out, and so are those without
  a caption where the captions are what a picture is called.

  Args:
    evaluation: the model's zero-shot evaluation on this source; computed here
      from `templates`, unless given.
    templates: prompts with a slot '{}' for a label's name.
    most: as many examples are drawn, where the source has more.
    seed: of the draw.
  """
  indices = np.arange(len(source))
  if len(indices) > most:
    drawn = np.random.default_rng(seed).permutation(indices)[:most]
    indices = np.sort(drawn)
  records = list(_readable(source, indices))
  names = source.label_names or ()
  labelled = bool(names) and all('label' in record for record in records)
  captioned = not labelled and any(record['caption'] for record in records)
  if captioned:  # a picture without one is asked nothing
    records = [record for record in records if record['caption']]
  if not records:
    return no_examples()
  features = model.encode_image(decode(record['image']) for record in records)
  predictions, choices = None, len(names)
  if captioned:
    captions = [record['caption'] for record in records]
    predictions, choices = _rank_captions(model, features, captions)
  elif labelled:
    predictions = _evaluated(records, evaluation) or _predict(
      model,
      features,
      [int(record['label']) for record in records],
      names,
      templates,
    )
  return Examples(
    images=[record['image'] for record in records],
    texts=[_text(record, names) for record in records],
    features=features,
    predictions=predictions,
    choices=choices,
    captioned=captioned,
  )


def some_right_some_wrong(
  predictions: Sequence[Prediction], count: int, seed: int
) -> list[int]:
  """Indices drawn by seed: right and wrong ones in turn, half of each.

  Where there are too few of one kind, the other fills up.
  """
  order = np.random.default_rng(seed).permutation(len(predictions))
  right = [int(i) for i in order if predictions[i].rank == 0]
  wrong = [int(i) for i in order if predictions[i].rank != 0]
  half = min(len(right), max(count // 2, count - len(wrong)))
  right, wrong = right[:half], wrong[: count - half]
  mixed = [i for pair in zip(right, wrong, strict=False) for i in pair]
  return [*mixed, *right[len(wrong) :], *wrong[len(right) :]]


@dataclasses.dataclass(frozen=True)
class Confusion:
  """A name that was given in place of another."""

  example: int  # the one of these pictures that it was given most surely
  right: str
  given: str
  times: int
  probability: float  # mean


def confusions(
  predictions: Sequence[Prediction], count: int
) -> list[Confusion]:
  """Wrong first answers: the most frequent, then the most certain."""
  found = collections.defaultdict(list)
  for i, prediction in enumerate(predictions):
    given, probability = prediction.top[0]
    if given not in prediction.answers:
      found[prediction.right, given].append((probability, i))
  pairs = [
    Confusion(
      example=max(times)[1],
      right=right,
      given=given,
      times=len(times),
      probability=sum(p for p, _ in times) / len(times),
    )
    for (right, given), times in found.items()
  ]
  pairs.sort(key=lambda c: (-c.times, -c.probability, c.right, c.given))
  return pairs[:count]


def _readable(source: Source, indices: np.ndarray) -> Iterator[Any]:
  for i in indices:
    try:
      record = source[int(i)]
      decode(record['image'])
    except CorruptImageError:
      continue
    yield record


def _text(record: Any, names: Sequence[str]) -> str:
  if record['caption']:
    return record['caption'][0]
  return names[int(record['label'])] if names and 'label' in record else ''


def _evaluated(
  records: Sequence[Any], evaluation: Evaluation | None
) -> list[Prediction] | None:
  """An evaluation's predictions, if it has one for every record."""
  if evaluation is None:
    return None
  by_id = {record['id']: record for record in evaluation.records}
  if not all('top' in by_id.get(r['id'], {}) for r in records):
    return None
  return [
    Prediction(
      by_id[record['id']]['label'],
      [(name, float(p)) for name, p in by_id[record['id']]['top']],
    )
    for record in records
  ]


def _rank_captions(
  model: Encoder,
  features: Float[np.ndarray, 'N E'],
  captions: Sequence[Sequence[str]],
) -> tuple[list[Prediction], int]:
  """The best captions of each picture among those of all, and their number."""
  different = list(dict.fromkeys(text for own in captions for text in own))
  best, probabilities = top_classes(
    features,
    model.encode_text(different).T,
    k=GIVEN_NAMES,
    logit_scale=model.logit_scale,
  )
  predictions = [
    Prediction(
      own[0],
      [(different[int(c)], float(p)) for c, p in zip(*top, strict=True)],
      tuple(own[1:]),
    )
    for own, top in zip(
      captions, zip(best, probabilities, strict=True), strict=True
    )
  ]
  return predictions, len(different)


def _predict(
  model: Encoder,
  features: Float[np.ndarray, 'N E'],
  labels: Sequence[int],
  names: Sequence[str],
  templates: Sequence[str],
) -> list[Prediction]:
  weights = zero_shot_weights(model.encode_text, names, templates)
  best, probabilities = top_classes(
    features, weights, k=GIVEN_NAMES, logit_scale=model.logit_scale
  )
  return [
    Prediction(
      names[label],
      [(names[int(c)], float(p)) for c, p in zip(*top, strict=True)],
    )
    for label, top in zip(
      labels, zip(best, probabilities, strict=True), strict=True
    )
  ]
