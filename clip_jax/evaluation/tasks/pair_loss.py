"""The contrastive loss of pairs that are not being trained on.

It stands beside the training loss: where that goes on falling and this rises,
the model learns its training pairs by heart.
"""

import numpy as np
from jaxtyping import Float

from clip_jax.errors import FailureError, UsageError
from clip_jax.evaluation.dataset import Dataset
from clip_jax.evaluation.features.extraction import (
  read_features,
  text_features,
)
from clip_jax.evaluation.types import Encoder, Evaluation, Options

_GROUP = 2048  # pairs that are compared with each other: 32 MB of logits


def evaluate_loss(
  encoder: Encoder,
  dataset: Dataset,
  options: Options,
  *,
  objective: str,
  batch_size: int,
) -> Evaluation:
  """Returns the loss of a split's pairs in batches of the training's size.

  Args:
    encoder: its `logit_bias`, where the objective is the sigmoid loss.
    dataset: images with captions; of several the first is an image's.
    options: `cache`, `max_corrupt_records`, `progress`; `seed` draws the
      batches.
    objective, batch_size: see `pair_loss`.
  Returns:
    metrics: 'loss', and 'examples', the pairs.
  Raises:
    UsageError: there are fewer than two images with captions.
    FailureError: too many images are corrupt, or the loss is not finite.
  """
  features = read_features(encoder, dataset.test.source, options)
  rows = [i for i, own in enumerate(features.captions) if own]
  if len(rows) < 2:
    raise UsageError(
      f'data {dataset.name!r} has {len(rows)} images with captions: a loss '
      'is of two or more.'
    )
  texts = [features.captions[i][0] for i in rows]
  different = list(dict.fromkeys(texts))
  row_of = {text: i for i, text in enumerate(different)}
  encoded = text_features(encoder, different, options)
  loss = pair_loss(
    features.embeddings[rows],
    encoded[[row_of[text] for text in texts]],
    logit_scale=encoder.logit_scale,
    logit_bias=getattr(encoder, 'logit_bias', None) or 0.0,
    objective=objective,
    batch_size=batch_size,
    seed=options.seed,
  )
  if not np.isfinite(loss):
    raise FailureError(f'data {dataset.name!r}: the loss is {loss}.')
  return Evaluation(
    {'loss': loss, 'examples': float(len(rows))}, [], features.corrupt
  )


def pair_loss(
  image_features: Float[np.ndarray, 'N E'],
  text_features: Float[np.ndarray, 'N E'],
  *,
  logit_scale: float,
  logit_bias: float = 0.0,
  objective: str = 'softmax',
  batch_size: int,
  seed: int = 0,
) -> float:
  """Returns the mean loss of pairs, as if they came in batches of `batch_size`.

  They are compared within groups drawn by the seed. A group may have fewer
  pairs than a batch: its wrong answers are then counted so many times as makes
  them those of a batch, so that a model which knows nothing has ln(batch_size)
  all the same.

  Args:
    image_features, text_features: unit rows; row i of each is one pair.
    objective: 'softmax' or 'sigmoid', as `clip_jax.objectives` has them.
  Returns:
    Nats.
  """
  pairs = len(image_features)
  order = np.random.default_rng(seed).permutation(pairs)
  groups = max(1, pairs // min(batch_size, _GROUP))
  losses = []
  for rows in np.array_split(order, groups):
    logits = image_features[rows] @ text_features[rows].T
    logits = logit_scale * logits.astype(np.float64) + logit_bias
    weight = (batch_size - 1) / (len(rows) - 1)
    if objective == 'sigmoid':
      signs = 1 - 2 * np.eye(len(rows))
      answers = np.logaddexp(0, signs * logits)  # -log sigmoid
      right = np.diag(answers)
      losses += (right + weight * (answers.sum(axis=1) - right)).tolist()
    else:
      right = np.diag(logits)
      others = np.where(np.eye(len(rows), dtype=bool), 0.0, np.log(weight))
      weighted = logits + others
      both = [np.logaddexp.reduce(weighted, axis) - right for axis in (0, 1)]
      losses += np.mean(both, axis=0).tolist()
  return float(np.mean(losses))
