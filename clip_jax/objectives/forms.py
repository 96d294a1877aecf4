"""The loss that a config names: which objective, and in which form."""

from jax.sharding import Mesh

from clip_jax.errors import UsageError, check_choice
from clip_jax.objectives.contrastive import (
  distributed_softmax_loss,
  softmax_loss,
)
from clip_jax.objectives.pairwise import (
  Axes,
  Loss,
  gathered,
  largest_divisor,
  ring,
)
from clip_jax.objectives.sigmoid import distributed_sigmoid_loss, sigmoid_loss

NAMES = ('softmax', 'sigmoid')
FORMS = ('dense', 'all_gather', 'chunked', 'ring')


def make_loss(name: str, form: str, mesh: Mesh, axes: Axes, chunk: int) -> Loss:
  """The loss of (image features, text features, logit scale, logit bias).

  Args:
    name: one of `NAMES`.
    form: 'dense' is the formula, with all logits on hand; with 'all_gather' a
      device has its rows of them; with 'chunked' and 'ring' a tile of these.
    mesh, axes: the devices, and the axes over which the batch is split.
    chunk: rows and columns of a tile, at most.
  Raises:
    UsageError: the name or the form is unknown.
  """
  check_choice('objective.name', name, NAMES)
  check_choice('objective.form', form, FORMS)
  if form == 'dense':
    return softmax_loss if name == 'softmax' else sigmoid_loss
  sweep = {
    'all_gather': gathered(axes),
    'chunked': gathered(axes, chunk),
    'ring': ring(axes, chunk),
  }[form]
  if name == 'softmax':
    return distributed_softmax_loss(mesh, axes, sweep)
  return distributed_sigmoid_loss(mesh, axes, sweep)


def check_chunk(form: str, chunk: int, batch_size: int, ways: int) -> None:
  """Refuses tiles that do not cover the logits.

  Args:
    batch_size: pairs, all devices together.
    ways: devices that split them.
  Raises:
    UsageError: the form has tiles, and they do not.
  """
  own = batch_size // ways
  if form not in ('chunked', 'ring'):
    return
  length = own if chunk < own or form == 'ring' else batch_size
  if chunk < 1 or (chunk < length and length % chunk):
    right = largest_divisor(length, max(chunk, 1))
    raise UsageError(
      f'objective.chunk={chunk} does not divide the {length:,} pairs '
      f'{"of a device" if length == own else "of the batch"}: {right} does.'
    )
