"""The text tower as a hypernetwork, which makes classifiers of class names.

The paper calls it so in section 3.1.2: from the names of classes it computes
the weights of a linear classifier of image features.
"""

import functools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Float

from clip_jax.errors import FailureError, UsageError, first_few, print_warnings

PLAIN = ('{}',)  # the name itself, for models that were trained on names

# A prompt with a slot, or a function of the name, as open_clip has them.
Template = str | Callable[[str], str]
Templates = Iterable[Template] | Template

TextEncoder = Callable[[Iterable[str]], Float[np.ndarray, 'N E']]


def zero_shot_weights(
  encode_text: TextEncoder,
  labels: Sequence[str],
  templates: Sequence[Template] = PLAIN,
) -> Float[np.ndarray, 'E C']:
  """Returns one unit-length column a label: the mean direction of its prompts.

  Each prompt's embedding has unit length; a label's are averaged, and the
  mean is brought to unit length again.

  Args:
    encode_text: texts to unit-length float32 rows.
    labels: C names, not empty.
    templates: prompts with a slot '{}' for the name, or functions of it.
  Returns:
    float32. Cosine similarities are `image_features @ weights`; logits are
    these times the logit scale.
  Raises:
    UsageError: no labels, an empty one, or a template without a slot.
    FailureError: an embedding is not finite.
  """
  check_labels(labels)
  check_templates(templates)
  prompts = (
    prompt(template, label) for label in labels for template in templates
  )
  rows = encode_text(prompts)
  check_finite(rows, 'text')
  return mean_directions(rows, [len(templates)] * len(labels))


def mean_directions(
  rows: Float[np.ndarray, 'R E'], counts: Sequence[int]
) -> Float[np.ndarray, 'E C']:
  """Returns one unit-length column a class: the mean direction of its rows.

  Args:
    rows: embeddings of prompts, all those of a class together.
    counts: how many each of the C classes has; at least one.
  """
  starts = np.cumsum([0, *counts[:-1]])
  sums = np.add.reduceat(rows, starts, axis=0)  # C E; the length is set below
  norms = np.linalg.norm(sums, axis=1, keepdims=True)
  return (sums / np.maximum(norms, 1e-12)).T.astype(np.float32)


def prompt(template: Template, label: str) -> str:
  """Returns what a template says of a name.

  Raises:
    UsageError: it is a function, and gives no text.
  """
  if isinstance(template, str):
    return template.replace('{}', label)
  text = template(label)
  if not isinstance(text, str) or not text.strip():
    raise UsageError(f'a template gave {text!r} for {label!r}, and not a text.')
  return text


def softmax(logits: Float[np.ndarray, 'N C']) -> Float[np.ndarray, 'N C']:
  """Returns probabilities that sum to 1 in each row."""
  powers = np.exp(logits - logits.max(axis=1, keepdims=True))
  return powers / powers.sum(axis=1, keepdims=True)


def sigmoid(logits: Float[np.ndarray, 'N C']) -> Float[np.ndarray, 'N C']:
  """Returns the probability of each entry by itself."""
  return np.exp(-np.logaddexp(np.float32(0), -logits))


def check_labels(labels: Sequence[str]) -> None:
  """Refuses labels that cannot be classified among.

  Raises:
    UsageError: there are none, or one is empty.
  """
  if not labels:
    raise UsageError('no labels: give at least one name.')
  for i, label in enumerate(labels):
    if not label.strip():
      raise UsageError(f'label {i + 1} of {len(labels)} is empty.')


def same_names(labels: Sequence[str]) -> list[str]:
  """Returns a line for the labels that are one name, such as ImageNet's cranes.

  Case, underscores and spaces make no other name: tokenizers see none, or next
  to none.
  """
  indices: dict[str, list[int]] = {}
  for i, label in enumerate(labels):
    name = ' '.join(label.casefold().replace('_', ' ').split())
    indices.setdefault(name, []).append(i)
  twice = [x for x in indices.values() if len(x) > 1]
  if not twice:
    return []
  named = [' and '.join(f'{labels[i]!r} ({i + 1})' for i in x) for x in twice]
  some = first_few(named, '; ')
  return [
    f'these labels are the same name, so they split its probability: {some}.'
  ]


def check_templates(templates: Sequence[Template]) -> None:
  """Refuses templates that do not say where the name goes.

  One with more than one slot is questioned, once, on stderr.

  Raises:
    UsageError: there are none, or one lacks its slot.
  """
  if isinstance(templates, str) or not templates:
    raise UsageError(f'templates={templates!r}: give a list of at least one.')
  for template in templates:
    if callable(template):
      continue
    if not isinstance(template, str):
      raise UsageError(
        f'template {template!r}: give a text with a slot {{}}, or a function '
        'of the name.'
      )
    if template.count('{}') > 1:
      _warn_of_slots(template)
    if '{}' not in template:
      raise UsageError(
        f'template {template!r} has no slot: write {{}} where the name goes, '
        "as in 'a photo of a {}.'"
      )


@functools.cache
def _warn_of_slots(template: str) -> None:
  print_warnings(
    [
      f'template {template!r} is one prompt with {template.count("{}")} slots; '
      'several templates are given one by one.'
    ]
  )


def check_finite(features: np.ndarray, what: str) -> None:
  """Refuses features of a model whose training has diverged.

  Raises:
    FailureError: one is not a finite number.
  """
  bad = len(features) - int(np.isfinite(features).all(axis=1).sum())
  if bad:
    raise FailureError(
      f'{bad:,} of {len(features):,} {what} embeddings are not finite '
      'numbers: the parameters are damaged, or training diverged.'
    )
