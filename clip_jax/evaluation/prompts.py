"""Prompts for a data set's classes, and the classifier that they make."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from clip_jax.errors import UsageError
from clip_jax.evaluation.dataset import Dataset
from clip_jax.evaluation.encoder import Encoder, Options
from clip_jax.inference.classifier import (
  check_finite,
  check_labels,
  check_templates,
)


def classifier_for(
  encoder: Encoder,
  dataset: Dataset,
  options: Options,
  templates: Sequence[str] | None = None,
) -> Float[np.ndarray, 'E C']:
  """One unit-length column a class, made by the text tower (paper, 3.1.4).

  Every prompt's embedding has unit length; those of a class, over all of its
  names and all templates, are averaged in embedding space, and the mean is
  brought to unit length.

  Args:
    encoder: its `encode_text`.
    dataset: `class_names`, and `templates` unless others are asked for.
    options: `templates`, `cache`, `watch`.
    templates: instead of those of the options and the data set.
  Raises:
    UsageError: a class without a name, or a template without a slot.
    FailureError: an embedding is not finite.
  """
  chosen = tuple(templates or options.templates_for(dataset))
  check_templates(chosen)
  for index, names in enumerate(dataset.class_names):
    if not names:
      raise UsageError(f'class {index} of data {dataset.name!r} has no name.')
    check_labels(names)
  texts = [
    template.replace('{}', name)
    for names in dataset.class_names
    for name in names
    for template in chosen
  ]
  rows = text_features(encoder, texts, options)
  counts = [len(names) * len(chosen) for names in dataset.class_names]
  starts = np.cumsum([0, *counts[:-1]])
  means = np.add.reduceat(rows, starts, axis=0)  # C E, up to its length
  norms = np.linalg.norm(means, axis=1, keepdims=True)
  return (means / np.maximum(norms, 1e-12)).T.astype(np.float32)


def text_features(
  encoder: Encoder, texts: Sequence[str], options: Options
) -> Float[np.ndarray, 'N E']:
  """Unit-length rows, from the cache where there is one.

  Raises:
    FailureError: one is not finite.
  """
  if options.cache is not None:
    return options.cache.texts(texts, options)
  rows = encoder.encode_text(options.watch(texts, len(texts), 'texts'))
  check_finite(rows, 'text')
  return rows
