"""A contrastive loss whose rows are spread over devices (paper, section 2.5).

Such a loss is a sum over the B x B product of both towers' features, of which a
device has b rows. In `all_gather_form` a device gathers all columns at once; in
`ring_form` it receives those of one device after the other. Both compute the
product in tiles, so that no more than a tile of logits exists at a time, and
`sharded_loss` computes the tiles again for the gradient instead of keeping
them.

Shapes: B rows (or columns) of the global batch, b of one device, r and c of a
tile, E the joint space. All but `sharded_loss` runs inside of shard_map.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

Tree = Any  # arrays with one leading axis: of rows, or of columns
Axes = tuple[str, ...]
# (image features, text features, logit scale, logit bias) -> loss
Loss = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


class Reduction(NamedTuple):
  """A reduction over all tiles: a sum for each row and for each column.

  Attributes:
    init_rows, init_columns: (rows) or (columns) -> their sums before the first
      tile.
    add_tile: (rows, row sums, columns, column sums) -> both sums, with the tile
      of these rows and columns added.
    merge: (sums of all B columns over this device's rows, axes) -> the sums of
      this device's b columns over all rows.
  """

  init_rows: Callable[[Tree], Tree]
  init_columns: Callable[[Tree], Tree]
  add_tile: Callable[[Tree, Tree, Tree, Tree], tuple[Tree, Tree]]
  merge: Callable[[Tree, Axes], Tree]


# (reduction, this device's rows, its columns) -> the sums of both.
Form = Callable[[Reduction, Tree, Tree], tuple[Tree, Tree]]


def all_gather_form(axes: Axes, chunk: int | None = None) -> Form:
  """Returns the form in which each device gathers the columns of all others.

  It then computes its own rows of the product, b x B.

  Args:
    axes: the mesh axes over which the batch is split.
    chunk: rows and columns of a tile at most; None is all at once.
  """

  def reduce(reduction: Reduction, rows: Tree, columns: Tree):
    columns = jax.tree.map(
      lambda x: jax.lax.all_gather(x, axes, tiled=True), columns
    )
    row_sums = reduction.init_rows(rows)
    column_sums = reduction.init_columns(columns)
    row_sums, column_sums = _add_tiles(
      reduction.add_tile, chunk, rows, row_sums, columns, column_sums
    )
    return row_sums, reduction.merge(column_sums, axes)

  return reduce


def ring_form(axes: Axes, chunk: int | None = None) -> Form:
  """Returns the form in which columns are passed on from device to device.

  Their sums are passed on with them, and end at the device that they began at.
  So nothing of the size of the global batch is ever on one device.

  Args:
    axes, chunk: as in `all_gather_form`.
  """

  def reduce(reduction: Reduction, rows: Tree, columns: Tree):
    devices = jax.lax.axis_size(axes)
    to_the_next = [(i, (i + 1) % devices) for i in range(devices)]

    def hop(_, carried):
      row_sums, columns, column_sums = carried
      row_sums, column_sums = _add_tiles(
        reduction.add_tile, chunk, rows, row_sums, columns, column_sums
      )
      columns, column_sums = jax.lax.ppermute(
        (columns, column_sums), axes, to_the_next
      )
      return row_sums, columns, column_sums

    row_sums = reduction.init_rows(rows)
    column_sums = reduction.init_columns(columns)
    row_sums, _, column_sums = jax.lax.fori_loop(
      0, devices, hop, (row_sums, columns, column_sums)
    )
    return row_sums, column_sums

  return reduce


def exchange_of(form: str, axes: Axes, chunk: int) -> Form:
  """Returns how the columns come to the rows in a form that is not 'dense'."""
  if form == 'ring':
    return ring_form(axes, chunk)
  return all_gather_form(axes, chunk if form == 'chunked' else None)


def cosine_similarity(
  rows: Float[Array, 'r E'], columns: Float[Array, 'c E']
) -> Float[Array, 'r c']:
  """Returns the cosines of unit rows, at full precision."""
  return matmul(rows, columns.T)


def matmul(
  a: Float[Array, 'm k'], b: Float[Array, 'k n']
) -> Float[Array, 'm n']:
  """Returns a product at full precision.

  Logits are a hundred times a cosine: with a TPU's default, one bfloat16 pass,
  they would be off by tenths. Three passes would do, and save a thousandth of a
  ViT-L/14's step; but on GPUs the same word (HIGH) means TF32.
  """
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def reduce_scatter(sums: Float[Array, 'B ...'], axes: Axes) -> Array:
  """Adds sums of all columns over devices, and returns those of this device's.

  It is the `merge` of sums that are added.
  """
  return jax.lax.psum_scatter(sums, axes, tiled=True)


def sharded_loss(
  mesh: Mesh,
  axes: Axes,
  value: Callable[..., tuple[jax.Array, Tree]],
  gradients: Callable[..., tuple[Tree, ...]],
) -> Loss:
  """Returns a loss of global arrays from what each device computes of it.

  Between value and gradient only the features and a few numbers for each pair
  are kept; the logits are computed again.

  In place of the features of a side there may be a tree of arrays [B, ...]; the
  derivatives are then trees as well.

  Args:
    mesh, axes: the devices, and the axes over which the batch is split.
    value: (this device's image features [b, E], text features [b, E], scale,
      bias) -> (loss, tree of arrays [b] to keep).
    gradients: (the same four, the tree that was kept) -> the derivatives by all
      four.
  """
  split, whole = P(axes), P()
  inputs = (split, split, whole, whole)
  forward = jax.shard_map(
    value, mesh=mesh, in_specs=inputs, out_specs=(whole, split)
  )
  backward = jax.shard_map(
    gradients, mesh=mesh, in_specs=(*inputs, split), out_specs=inputs
  )

  @jax.custom_vjp
  def loss(image_features, text_features, logit_scale, logit_bias):
    return forward(image_features, text_features, logit_scale, logit_bias)[0]

  def loss_forward(*arguments):
    result, saved = forward(*arguments)
    return result, (*arguments, saved)

  def loss_backward(saved, cotangent):
    return jax.tree.map(lambda gradient: cotangent * gradient, backward(*saved))

  loss.defvjp(loss_forward, loss_backward)
  return loss


def _add_tiles(
  add_tile: Callable[[Tree, Tree, Tree, Tree], tuple[Tree, Tree]],
  chunk: int | None,
  rows: Tree,
  row_sums: Tree,
  columns: Tree,
  column_sums: Tree,
) -> tuple[Tree, Tree]:
  """Returns both sums with all tiles of these rows and columns added."""
  if chunk is None:
    return add_tile(rows, row_sums, columns, column_sums)

  def along_columns(row_sums, column_tile):
    columns, column_sums = column_tile

    def along_rows(column_sums, row_tile):
      rows, row_sums = row_tile
      row_sums, column_sums = add_tile(rows, row_sums, columns, column_sums)
      return column_sums, row_sums

    column_sums, row_sums = jax.lax.scan(
      along_rows, column_sums, (tiled_rows, row_sums)
    )
    return row_sums, column_sums

  tiled_rows, row_sums = _split((rows, row_sums), chunk)
  sums = jax.lax.scan(
    along_columns, row_sums, _split((columns, column_sums), chunk)
  )
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), sums)


def _split(tree: Tree, chunk: int) -> Tree:
  """Splits the leading axis by `chunk`, unless it is shorter."""

  def split(x):
    size = min(chunk, x.shape[0])
    return x.reshape(x.shape[0] // size, size, *x.shape[1:])

  return jax.tree.map(split, tree)


def largest_divisor(number: int, at_most: int) -> int:
  """Returns the largest divisor of `number` that is not above `at_most`."""
  return max(
    divisor
    for low in range(1, math.isqrt(number) + 1)
    if number % low == 0
    for divisor in (low, number // low)
    if divisor <= at_most
  )
