"""The held-out examples of a training report: images, texts, predictions."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from clip_jax.data.decoding import CorruptImageError, decode
from clip_jax.data.sources import Source
from clip_jax.evaluation import Encoder, Evaluation
from clip_jax.evaluation.metrics.ranking import top_classes
from clip_jax.inference.classifier import zero_shot_weights

NAMES_SHOWN = 5  # of each prediction


@dataclasses.dataclass(frozen=True)
class Prediction:
  """The model's answer for an image, and the right one.

  Attributes:
    right: the name, or the image's first caption.
    top: names (or captions) and probabilities, best first.
    also: the image's other captions, which are right as well.
  """

  right: str
  top: list[tuple[str, float]]
  also: tuple[str, ...] = ()

  @property
  def answers(self) -> tuple[str, ...]:
    """Returns all right answers."""
    return (self.right, *self.also)

  @property
  def rank(self) -> int | None:
    """Returns the index of the first right answer in `top`, or None."""
    ranks = (i for i, (name, _) in enumerate(self.top) if name in self.answers)
    return next(ranks, None)


@dataclasses.dataclass(frozen=True)
class ShownExamples:
  """N held-out examples; what has the same index belongs together."""

  images: list[Any]  # encoded bytes
  texts: list[str]  # one caption, or the label's name; '' without either
  features: Float[np.ndarray, 'N E']  # unit length
  predictions: list[Prediction] | None  # None without labels and captions
  choices: int  # names, or captions, to choose from
  captioned: bool = False  # the answers are captions and not names

  def __len__(self) -> int:
    return len(self.images)


NO_EXAMPLES = ShownExamples([], [], np.zeros((0, 1), np.float32), None, 0)


def draw_examples(
  model: Encoder,
  source: Source,
  *,
  evaluation: Evaluation | None,
  templates: Sequence[str],
  limit: int,
  seed: int,
) -> ShownExamples:
  """Reads and encodes each example once.

  Examples whose image cannot be read are left out, and so are those without a
  caption where captions take the place of names.

  Args:
    model: encodes them.
    source: held-out records.
    evaluation: the model's zero-shot evaluation on this source; computed here
      from `templates`, unless given.
    templates: prompts with a slot '{}' for a label's name.
    limit: as many examples are drawn, where the source has more.
    seed: of the draw.
  """
  indices = np.arange(len(source))
  if len(indices) > limit:
    indices = np.random.default_rng(seed).permutation(indices)[:limit]
  records = list(_readable(source, sorted(indices.tolist())))
  names = source.label_names or ()
  labelled = bool(names) and all('label' in record for record in records)
  captioned = not labelled and any(record['caption'] for record in records)
  if captioned:
    records = [record for record in records if record['caption']]
  if not records:
    return NO_EXAMPLES
  features = model.encode_image(decode(record['image']) for record in records)
  predictions = None
  if captioned:
    answers = [record['caption'] for record in records]
    names = list(dict.fromkeys(text for own in answers for text in own))
    weights = model.encode_text(names).T
    predictions = _predict(model, features, weights, names, answers)
  elif labelled:
    predictions = _evaluated(records, evaluation)
  if labelled and predictions is None:
    answers = [[names[int(record['label'])]] for record in records]
    weights = zero_shot_weights(model.encode_text, names, templates)
    predictions = _predict(model, features, weights, names, answers)
  return ShownExamples(
    images=[record['image'] for record in records],
    texts=[_text(record, source.label_names or ()) for record in records],
    features=features,
    predictions=predictions,
    choices=len(names),
    captioned=captioned,
  )


def some_right_some_wrong(
  predictions: Sequence[Prediction], count: int, seed: int
) -> list[int]:
  """Returns indices drawn by seed: right and wrong ones in turn, half of each.

  Where there are too few of one kind, there are more of the other.
  """
  order = np.random.default_rng(seed).permutation(len(predictions))
  right = [int(i) for i in order if predictions[i].rank == 0]
  wrong = [int(i) for i in order if predictions[i].rank != 0]
  half = min(len(right), max(count // 2, count - len(wrong)))
  right, wrong = right[:half], wrong[: count - half]
  mixed = [i for pair in zip(right, wrong, strict=False) for i in pair]
  return [*mixed, *right[len(wrong) :], *wrong[len(right) :]]


def _readable(source: Source, indices: Sequence[int]) -> Iterator[Any]:
  """Yields the records whose image can be decoded."""
  for i in indices:
    try:
      record = source[int(i)]
      decode(record['image'])
    except CorruptImageError:
      continue
    yield record


def _text(record: Any, names: Sequence[str]) -> str:
  """Returns a caption, or the label's name; '' without either."""
  if record['caption']:
    return record['caption'][0]
  return names[int(record['label'])] if names and 'label' in record else ''


def _evaluated(
  records: Sequence[Any], evaluation: Evaluation | None
) -> list[Prediction] | None:
  """Returns an evaluation's predictions, if it has one for every record."""
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


def _predict(
  model: Encoder,
  features: Float[np.ndarray, 'N E'],
  weights: Float[np.ndarray, 'E C'],
  names: Sequence[str],
  answers: Sequence[Sequence[str]],
) -> list[Prediction]:
  """Returns the best names of each image.

  Args:
    model: has the temperature.
    features, weights: of the images, and of the names; unit length.
    names: C names, or captions.
    answers: the right ones of each image, at least one.
  """
  best, probabilities = top_classes(
    features, weights, k=NAMES_SHOWN, logit_scale=model.logit_scale
  )
  return [
    Prediction(
      right,
      [(names[int(c)], float(p)) for c, p in zip(*top, strict=True)],
      tuple(also),
    )
    for (right, *also), top in zip(
      answers, zip(best, probabilities, strict=True), strict=True
    )
  ]
