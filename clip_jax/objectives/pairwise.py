"""Every row of a batch beside every column of it, on any devices.

A contrastive loss is a sum over the B x B product of both towers' features. A
device has b rows of it; `gathered` brings it all columns at once, `ring` those
of one device after the other. Either looks at tiles of the product, so that no
more than a tile of logits exists at a time, and `recomputed` makes the tiles
anew for the gradient instead of keeping them.

Shapes: B rows (or columns) of the global batch, b of one device, r and c of a
tile, E the joint space. All functions but `recomputed` run inside shard_map.
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


class Pass(NamedTuple):
  """What is computed of all tiles: a sum for each row and for each column.

  Attributes:
    start_rows, start_columns: from rows (columns) to their sums before the
      first tile.
    visit: from rows, their sums, columns and theirs to both sums, with the tile
      of these rows and columns added.
    merge: from sums of all B columns, over the rows of one device, to those of
      this device's b columns, over all rows.
  """

  start_rows: Callable[[Tree], Tree]
  start_columns: Callable[[Tree], Tree]
  visit: Callable[[Tree, Tree, Tree, Tree], tuple[Tree, Tree]]
  merge: Callable[[Tree, Axes], Tree]


# From a pass, this device's rows and its columns to the sums of both.
Sweep = Callable[[Pass, Tree, Tree], tuple[Tree, Tree]]


def gathered(axes: Axes, chunk: int | None = None) -> Sweep:
  """Each device gathers all columns and looks at its own rows of the product.

  Args:
    axes: the mesh axes over which the batch is split.
    chunk: at most so many rows and columns are looked at together; None: all.
  """

  def sweep(work: Pass, rows: Tree, columns: Tree):
    columns = jax.tree.map(
      lambda x: jax.lax.all_gather(x, axes, tiled=True), columns
    )
    row_sums = work.start_rows(rows)
    column_sums = work.start_columns(columns)
    row_sums, column_sums = _in_tiles(
      work.visit, chunk, rows, row_sums, columns, column_sums
    )
    return row_sums, work.merge(column_sums, axes)

  return sweep


def ring(axes: Axes, chunk: int | None = None) -> Sweep:
  """Columns travel from device to device with their sums, and come home.

  Nothing of the size of the global batch is ever on one device.

  Args:
    axes, chunk: as in `gathered`.
  """

  def sweep(work: Pass, rows: Tree, columns: Tree):
    devices = jax.lax.axis_size(axes)
    to_the_next = [(i, (i + 1) % devices) for i in range(devices)]

    def hop(_, carried):
      row_sums, columns, column_sums = carried
      row_sums, column_sums = _in_tiles(
        work.visit, chunk, rows, row_sums, columns, column_sums
      )
      columns, column_sums = jax.lax.ppermute(
        (columns, column_sums), axes, to_the_next
      )
      return row_sums, columns, column_sums

    row_sums = work.start_rows(rows)
    column_sums = work.start_columns(columns)
    row_sums, _, column_sums = jax.lax.fori_loop(
      0, devices, hop, (row_sums, columns, column_sums)
    )
    return row_sums, column_sums

  return sweep


def product(
  rows: Float[Array, 'r E'], columns: Float[Array, 'c E']
) -> Float[Array, 'r c']:
  """Cosines of unit rows, at full precision."""
  return matmul(rows, columns.T)


def matmul(
  a: Float[Array, 'm k'], b: Float[Array, 'k n']
) -> Float[Array, 'm n']:
  """A product at full precision: logits are a hundred times a cosine, and with
  a TPU's default, one bfloat16 pass, they would be off by tenths."""
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def summed_over_devices(sums: Float[Array, 'B ...'], axes: Axes) -> Array:
  """Of sums of all columns, on each device over its own rows, this device's
  columns over all rows: the `merge` of what is added up."""
  return jax.lax.psum_scatter(sums, axes, tiled=True)


def recomputed(
  mesh: Mesh,
  axes: Axes,
  value: Callable[..., tuple[jax.Array, Tree]],
  gradients: Callable[..., tuple[jax.Array, ...]],
) -> Loss:
  """A loss of global arrays from what each device does of it.

  Between value and gradient only the features are kept, and a few numbers a
  pair.

  Args:
    mesh, axes: the devices, and the axes over which the batch is split.
    value: from this device's image features [b, E] and text features [b, E],
      the scale and the bias to the loss, and a tree of arrays [b] to keep.
    gradients: from the same and the kept tree to the derivatives by all four.
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
    result, kept = forward(*arguments)
    return result, (*arguments, kept)

  def loss_backward(kept, cotangent):
    return tuple(cotangent * gradient for gradient in backward(*kept))

  loss.defvjp(loss_forward, loss_backward)
  return loss


def _in_tiles(
  visit: Callable[[Tree, Tree, Tree, Tree], tuple[Tree, Tree]],
  chunk: int | None,
  rows: Tree,
  row_sums: Tree,
  columns: Tree,
  column_sums: Tree,
) -> tuple[Tree, Tree]:
  """Visits all tiles of these rows and columns, one after the other."""
  if chunk is None:
    return visit(rows, row_sums, columns, column_sums)

  def along_columns(row_sums, column_tile):
    columns, column_sums = column_tile

    def along_rows(column_sums, row_tile):
      rows, row_sums = row_tile
      row_sums, column_sums = visit(rows, row_sums, columns, column_sums)
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
  """The leading axis in pieces of `chunk`, or whole where it is shorter."""

  def split(x):
    size = min(chunk, x.shape[0])
    return x.reshape(x.shape[0] // size, size, *x.shape[1:])

  return jax.tree.map(split, tree)


def largest_divisor(number: int, at_most: int) -> int:
  """The largest divisor of a number that is not above another one."""
  return max(
    divisor
    for low in range(1, math.isqrt(number) + 1)
    if number % low == 0
    for divisor in (low, number // low)
    if divisor <= at_most
  )
