"""The losses that a config can name, and the forms in which they are computed.

To add a loss, write it as a function of (image features, text features, logit
scale, logit bias) over whole arrays, and give it a row in `OBJECTIVES`. That
trains on any mesh in the form 'dense'. The other forms need its sums over tiles
of logits too, as in `contrastive.distributed_softmax_loss`.
"""

import dataclasses
from collections.abc import Callable

from jax.sharding import Mesh

from clip_jax.errors import UsageError, check_choice
from clip_jax.objectives.contrastive import (
  distributed_softmax_loss,
  softmax_loss,
)
from clip_jax.objectives.sharded import (
  Axes,
  Form,
  Loss,
  all_gather_form,
  largest_divisor,
  ring_form,
)
from clip_jax.objectives.sigmoid import distributed_sigmoid_loss, sigmoid_loss

FORMS = ('dense', 'all_gather', 'chunked', 'ring')


@dataclasses.dataclass(frozen=True)
class Objective:
  """A loss over whole arrays, and from the rows of each device.

  Attributes:
    dense: the formula, with all logits on hand.
    distributed: from a mesh, its axes and a form to the same loss; None where
      there is only the formula.
  """

  dense: Loss
  distributed: Callable[[Mesh, Axes, Form], Loss] | None = None


OBJECTIVES = {
  'softmax': Objective(softmax_loss, distributed_softmax_loss),
  'sigmoid': Objective(sigmoid_loss, distributed_sigmoid_loss),
}


def make_loss(name: str, form: str, mesh: Mesh, axes: Axes, chunk: int) -> Loss:
  """Returns a loss of image features, text features, logit scale and bias.

  Args:
    name: a key of `OBJECTIVES`.
    form: 'dense' is the formula, with all logits on hand; with 'all_gather' a
      device has its rows of them; with 'chunked' and 'ring' a tile of these.
    mesh, axes: the devices, and the axes over which the batch is split.
    chunk: rows and columns of a tile, at most.
  Raises:
    UsageError: the name or the form is unknown, or the loss has not this form.
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
  if form == 'ring':
    exchange = ring_form(axes, chunk)
  else:
    exchange = all_gather_form(axes, chunk if form == 'chunked' else None)
  return objective.distributed(mesh, axes, exchange)


def check_chunk(form: str, chunk: int, batch_size: int, ways: int) -> None:
  """Refuses tiles that do not cover the logits.

  Args:
    form: one of `FORMS`.
    chunk: rows and columns of a tile, at most.
    batch_size: pairs, all devices together.
    ways: devices that split them.
  Raises:
    UsageError: the form has tiles, and they do not cover the logits.
  """
  own = batch_size // ways
  if form not in ('chunked', 'ring'):
    return
  length = own if chunk < own or form == 'ring' else batch_size
  if chunk < 1 or (chunk < length and length % chunk):
    divisor = largest_divisor(length, max(chunk, 1))
    raise UsageError(
      f'objective.chunk={chunk} does not divide the {length:,} pairs '
      f'{"of a device" if length == own else "of the batch"}: {divisor} does.'
    )
