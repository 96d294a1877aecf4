"""Sums a contrastive loss and other terms to the objective of a train step.

An objective has two parts, so that a batch can be encoded in micro-batches.
`encode` makes arrays with a leading axis of pairs, each row from its own pair
alone, and numbers that all pairs share. `loss` then makes one number of those
of the whole batch.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.objectives.sharded import Loss

Arrays = dict[str, jax.Array]
Inputs = Mapping[str, jax.Array]  # arrays with a leading axis of pairs


@dataclasses.dataclass(frozen=True)
class Objective:
  """A loss of a batch, in two parts.

  Attributes:
    encode: (a bound model, inputs) -> arrays of the pairs [B, ...], and scalars
      that all pairs share. It runs inside of `model.apply`, where `inputs` has
      normalised images, and sees some of the pairs or all of them.
    loss: (arrays of all pairs, shared scalars, inputs of all pairs) -> the
      loss, and its parts by name, for metrics.
    outputs: what `encode` reads of the towers, of `DualEncoder.outputs`.
  """

  encode: Callable[[DualEncoder, Inputs], tuple[Arrays, Arrays]]
  loss: Callable[[Arrays, Arrays, Inputs], tuple[jax.Array, Arrays]]
  outputs: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Term:
  """A loss that is added to the contrastive one, or takes its place.

  Attributes:
    pairs: (a bound model, what its towers gave, inputs) -> arrays [B, ...] of
      these pairs, such as the log-likelihood of each caption.
    loss: (all arrays of all pairs, shared scalars, inputs of all pairs) -> the
      loss, a scalar. Shared are `logit_scale` and `logit_bias`.
    outputs: what it reads of the towers, beyond the features: names that
      `DualEncoder.outputs` knows.
  """

  pairs: Callable[[DualEncoder, Arrays, Inputs], Arrays]
  loss: Callable[[Arrays, Arrays, Inputs], jax.Array]
  outputs: frozenset[str] = frozenset()


def make_objective(
  contrastive: Loss | None,
  terms: Mapping[str, tuple[float, Term]] | None = None,
  weight: float = 1.0,
) -> Objective:
  """Returns the weighted sum of a contrastive loss and of terms.

  Args:
    contrastive: of image features, text features, logit scale and logit bias.
      Without it, only what the terms read is computed.
    terms: weights and terms, by the names of their metrics.
    weight: of the contrastive loss.
  Returns:
    An objective whose loss has a part for each of them, before its weight,
    where there is more than one.
  """
  terms = terms or {}
  outputs = frozenset[str]().union(
    *(term.outputs for _, term in terms.values())
  )
  if contrastive is not None:
    outputs |= {'image_features', 'text_features'}

  def encode(model: DualEncoder, inputs: Inputs) -> tuple[Arrays, Arrays]:
    towers = model.outputs(
      inputs['image'],
      inputs['tokens'],
      outputs,
      train=True,
      kept_patches=inputs.get('kept_patches'),
    )
    pairs = {}
    if contrastive is not None:
      pairs = {k: towers[k] for k in ('image_features', 'text_features')}
    for _, term in terms.values():
      pairs |= term.pairs(model, towers, inputs)
    scale, bias = model.temperature()
    return pairs, {'logit_scale': scale, 'logit_bias': bias}

  def loss(
    pairs: Arrays, shared: Arrays, inputs: Inputs
  ) -> tuple[jax.Array, Arrays]:
    parts: dict[str, Any] = {}
    total: Any = 0.0
    if contrastive is not None:
      parts['contrastive'] = contrastive(
        pairs['image_features'],
        pairs['text_features'],
        shared['logit_scale'],
        shared['logit_bias'],
      )
      total = weight * parts['contrastive']
    for name, (weight_of_term, term) in terms.items():
      parts[name] = term.loss(pairs, shared, inputs)
      total = total + weight_of_term * parts[name]
    return total, parts if len(parts) > 1 else {}

  return Objective(encode, loss, outputs)
