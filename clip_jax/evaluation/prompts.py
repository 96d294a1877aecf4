"""Prompts for a data set's classes, and the classifier that they make."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from clip_jax.errors import UsageError
from clip_jax.evaluation.dataset import Dataset
from clip_jax.evaluation.features.encoding import (
  encode_texts,
  text_parts,
)
from clip_jax.evaluation.types import Encoder, Options
from clip_jax.inference.classifier import check_labels, check_templates


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
    options: `templates`, `cache`, `progress`.
    templates: instead of those of the options and the data set.
  Raises:
    UsageError: a class without a name, or a template without a slot.
    FailureError: an embedding is not finite.
  """
  chosen = tuple(templates or options.templates_for(dataset))
  rows = prompt_features(encoder, dataset, options, chosen)
  counts = [len(names) for names in dataset.class_names]
  return mean_directions(rows.reshape(-1, rows.shape[-1]), counts, len(chosen))


def prompt_features(
  encoder: Encoder,
  dataset: Dataset,
  options: Options,
  templates: Sequence[str],
) -> Float[np.ndarray, 'M T E']:
  """The embedding of each name in each template.

  Args:
    dataset: the M names of its `class_names`, all those of a class together.
    options: `cache`, `progress`.
    templates: T prompts.
  Raises:
    UsageError: a class without a name, or a template without a slot.
    FailureError: an embedding is not finite.
  """
  check_templates(templates)
  for index, names in enumerate(dataset.class_names):
    if not names or not all(name.strip() for name in names):
      raise UsageError(
        f'class {index} of data {dataset.name!r} has '
        f'{"an empty" if names else "no"} name.'
      )
  every = [name for names in dataset.class_names for name in names]
  check_labels(every)
  texts = [text for own in prompts_of(dataset, templates) for text in own]
  rows = text_features(encoder, texts, options)
  return rows.reshape(len(every), len(templates), -1)


def prompts_of(dataset: Dataset, templates: Sequence[str]) -> list[list[str]]:
  """The prompts of each class: of each of its names those of all templates."""
  return [
    [template.replace('{}', name) for name in names for template in templates]
    for names in dataset.class_names
  ]


def mean_directions(
  rows: Float[np.ndarray, 'R E'], names: Sequence[int], templates: int
) -> Float[np.ndarray, 'E C']:
  """Unit-length columns: the mean of each class's rows.

  Args:
    rows: of each name's templates, in the order of the classes.
    names: how many each class has.
    templates: rows a name.
  """
  counts = np.array(names) * templates
  starts = np.cumsum([0, *counts[:-1]])
  sums = np.add.reduceat(rows, starts, axis=0)  # C E: the length is free
  norms = np.linalg.norm(sums, axis=1, keepdims=True)
  return (sums / np.maximum(norms, 1e-12)).T.astype(np.float32)


def text_features(
  encoder: Encoder, texts: Sequence[str], options: Options
) -> Float[np.ndarray, 'N E']:
  """Unit-length rows, from the cache where there is one.

  Args:
    texts: at least one.
    options: `cache`, `progress`.
  Raises:
    FailureError: one is not finite.
  """
  if options.cache is not None:
    return options.cache.texts(texts, options)
  parts = encode_texts(encoder, texts, text_parts(texts), options)
  return np.concatenate([rows for _, rows in parts])
