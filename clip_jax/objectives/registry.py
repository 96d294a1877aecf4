"""The losses that a config can name, and the forms in which they are computed.

Those of `PREDICTIVE` are terms of an objective, and have one form.

To add a loss, write it as a function of (image features, text features, logit
scale, logit bias) over whole arrays, and give it a row in `OBJECTIVES`. That
trains on any mesh in the form 'dense'. The other forms need its sums over tiles
of logits too, as in `contrastive.distributed_softmax_loss`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jax.sharding import Mesh

from clip_jax.errors import UsageError, check_choice
from clip_jax.models.config import CLIPConfig
from clip_jax.objectives.contrastive import (
  distributed_softmax_loss,
  softmax_loss,
)
from clip_jax.objectives.objective import Objective, Term, make_objective
from clip_jax.objectives.sharded import (
  Axes,
  Form,
  Loss,
  exchange_of,
  largest_divisor,
)
from clip_jax.objectives.sigmoid import distributed_sigmoid_loss, sigmoid_loss

FORMS = ('dense', 'all_gather', 'chunked', 'ring')


@dataclasses.dataclass(frozen=True)
class LossForms:
  """A loss as a formula over whole arrays, and computed from rows.

  Attributes:
    dense: the formula, which holds all logits in memory.
    distributed: (mesh, axes, form) -> the same loss with its rows spread over
      devices; None where there is only the formula.
  """

  dense: Loss
  distributed: Callable[[Mesh, Axes, Form], Loss] | None = None


OBJECTIVES = {
  'softmax': LossForms(softmax_loss, distributed_softmax_loss),
  'sigmoid': LossForms(sigmoid_loss, distributed_sigmoid_loss),
}


# Objectives that compare nothing but predict captions (the paper's figure 2),
# and what the decoder of each may read.
PREDICTIVE = {
  'captioning': ('tokens', 'text_tower', 'image_prefix'),
  'bag_of_words': ('pooled_image',),
}


# Terms that a momentum teacher gives the answers to, and that may begin late.
TAUGHT = ('self_distillation', 'masked_prediction')


def objective_of(
  fields: Any,
  model: CLIPConfig,
  mesh: Mesh,
  axes: Axes,
  taught: Mapping[str, Term] | None = None,
) -> Objective:
  """Returns what a config asks for: a loss, and terms beside it.

  Args:
    fields: `objective` of configs/base.py.
    model: has the decoder that a term needs.
    mesh, axes: the devices, and the axes over which the batch is split.
    taught: those of `TAUGHT` that are computed.
  """
  taught = taught or {}
  form = fields.form, mesh, axes, fields.chunk
  if fields.name in PREDICTIVE:
    term = make_term(fields.name, model)
    return make_objective(None, {fields.name: (fields.weight, term)})

  def term_of(name: str) -> Term:
    if name in taught:
      return taught[name]
    if name != 'distillation':
      return make_term(name, model)
    from clip_jax.objectives.distillation import distillation_term

    return distillation_term(tuple(fields.teacher_scales), *form)

  return make_objective(
    make_loss(fields.name, *form) if fields.weight else None,
    {
      name: (weight, term_of(name))
      for name, weight in fields.added.items()
      if weight and (name in taught or name not in TAUGHT)
    },
    fields.weight,
  )


def make_term(name: str, config: CLIPConfig) -> Term:
  """Returns a predictive objective of a model, which has the decoder for it.

  Args:
    name: a key of `PREDICTIVE`.
    config: of the model.
  """
  from clip_jax.objectives import predictive

  return getattr(predictive, name)(config)


def make_loss(name: str, form: str, mesh: Mesh, axes: Axes, chunk: int) -> Loss:
  """Returns a loss of image features, text features, logit scale and bias.

  Args:
    name: a key of `OBJECTIVES`.
    form: which logits are in memory: with 'dense' all of them, with
      'all_gather' the rows of a device, with 'chunked' and 'ring' a tile.
    mesh, axes: the devices, and the axes over which the batch is split.
    chunk: rows and columns of a tile, at most.
  Raises:
    UsageError: the name or the form is unknown, or the loss has no such form.
  """
  check_choice('objective.name', name, tuple(OBJECTIVES))
  check_choice('objective.form', form, FORMS)
  objective = OBJECTIVES[name]
  if form == 'dense':
    return objective.dense
  if objective.distributed is None:
    raise UsageError(
      f"objective.form={form!r}: the loss {name!r} has the form 'dense' only."
    )
  return objective.distributed(mesh, axes, exchange_of(form, axes, chunk))


def check_chunk(form: str, chunk: int, batch_size: int, devices: int) -> None:
  """Refuses tiles that do not cover the logits.

  Args:
    form: one of `FORMS`.
    chunk: rows and columns of a tile, at most.
    batch_size: pairs, all devices together.
    devices: the number of devices that the pairs are split over.
  Raises:
    UsageError: the form has tiles, and they do not cover the logits.
  """
  per_device = batch_size // devices
  if form not in ('chunked', 'ring'):
    return
  length = batch_size
  if chunk < per_device or form == 'ring':
    length = per_device
  if chunk < 1 or (chunk < length and length % chunk):
    divisor = largest_divisor(length, max(chunk, 1))
    where = 'of a device' if length == per_device else 'of the batch'
    raise UsageError(
      f'objective.chunk={chunk} does not divide the {length:,} pairs {where}: '
      f'{divisor} does.'
    )
