"""The symmetric softmax loss (CLIP paper, section 2.3, figure 3).

First the formula over whole arrays, then the same number from the rows of each
device.

Shapes: B pairs of the global batch, b of one device, E the joint space.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from clip_jax.objectives.sharded import (
  Axes,
  Form,
  Loss,
  Reduction,
  cosine_similarity,
  matmul,
  reduce_scatter,
  sharded_loss,
)


def softmax_loss(
  image_features: Float[Array, 'B E'],
  text_features: Float[Array, 'B E'],
  logit_scale: Float[Array, ''],
  logit_bias: Float[Array, ''] | float = 0.0,
) -> Float[Array, '']:
  """Returns the symmetric cross-entropy of pairs (the paper's figure 3).

  Args:
    image_features, text_features: unit rows; row i of each is one pair.
    logit_scale: the multiplier itself, already exponentiated.
    logit_bias: cancels in a softmax, whatever it is.
  Returns:
    Nats, a mean over pairs; ln(B) where all features are equal.
  """
  del logit_bias
  logits = logit_scale * cosine_similarity(image_features, text_features)
  rows = jax.nn.log_softmax(logits, axis=1)
  columns = jax.nn.log_softmax(logits, axis=0)
  return -(jnp.diagonal(rows).mean() + jnp.diagonal(columns).mean()) / 2


def distributed_softmax_loss(mesh: Mesh, axes: Axes, form: Form) -> Loss:
  """Returns `softmax_loss` with its rows spread over the devices of a mesh.

  A device computes the logits of its own images against all texts, b x B, and
  from them both cross-entropies. It has the normalisers of its rows; those of
  columns are summed over devices. So the logits are computed once, and only
  text features are sent. The gradient computes the logits again.

  Args:
    mesh, axes: the devices, and the axes over which the batch is split.
    form: how the features of texts come to those of images (see `sharded`).
  Returns:
    A function of global arrays with the signature of `softmax_loss`, whose
    batch must be a multiple of the devices on `axes`.
  """

  def value(images, texts, scale, bias):
    del bias
    pairs = images.shape[0] * jax.lax.axis_size(axes)
    rows, columns = form(_log_sum_exp(scale), images, texts)
    saved = log_of(rows), log_of(columns)
    matched = scale * jnp.sum(images * texts, axis=-1)
    total = jnp.sum(saved[0] + saved[1] - 2 * matched)
    return jax.lax.psum(total, axes) / (2 * pairs), saved

  def gradients(images, texts, scale, bias, saved):
    pairs = images.shape[0] * jax.lax.axis_size(axes)
    rows, columns = saved
    (by_images, by_scale), by_texts = form(
      _gradient_sums(scale), (images, rows), (texts, columns)
    )
    matched = jnp.sum(images * texts, axis=-1)
    by_scale = jax.lax.psum(jnp.sum(by_scale - 2 * matched), axes)
    return (
      scale * (by_images - 2 * texts) / (2 * pairs),
      scale * (by_texts - 2 * images) / (2 * pairs),
      by_scale / (2 * pairs),
      jnp.zeros_like(bias),
    )

  return sharded_loss(mesh, axes, value, gradients)


def _log_sum_exp(scale: jax.Array) -> Reduction:
  """Returns the reduction to the normaliser of each row and each column."""

  def init(features):
    zeros = jnp.zeros_like(features[:, 0])
    return zeros - jnp.inf, zeros

  def add_tile(rows, row_sums, columns, column_sums):
    logits = scale * cosine_similarity(rows, columns)
    return (
      add_to_softmax(row_sums, logits, 1),
      add_to_softmax(column_sums, logits, 0),
    )

  return Reduction(init, init, add_tile, merge_softmax)


def add_to_softmax(
  sums: tuple[jax.Array, ...], logits: jax.Array, axis: int, *values: jax.Array
) -> tuple[jax.Array, ...]:
  """Adds a tile to the sums of a softmax over an axis of the logits.

  They are held relative to a maximum, which is updated with each tile (as in
  flash attention).

  Args:
    sums: the maximum, -inf before the first tile; the sum of exponentials; and
      that of exponentials times each of the values.
    logits: of the tile, r x c.
    axis: over which it sums.
    values: r x c.
  """
  highest, *totals = sums
  higher = jnp.maximum(highest, logits.max(axis))
  exponentials = jnp.exp(logits - jnp.expand_dims(higher, axis))
  terms = [exponentials, *(exponentials * value for value in values)]
  rescale = jnp.exp(highest - higher)
  return higher, *(
    total * rescale + term.sum(axis)
    for total, term in zip(totals, terms, strict=True)
  )


def merge_softmax(
  sums: tuple[jax.Array, ...], axes: Axes
) -> tuple[jax.Array, ...]:
  """Merges the sums of `add_to_softmax` over devices, as `Reduction.merge`."""
  highest, *totals = sums
  higher = jax.lax.pmax(highest, axes)
  rescale = jnp.exp(highest - higher)
  totals = [reduce_scatter(total * rescale, axes) for total in totals]
  first = jax.lax.axis_index(axes) * totals[0].shape[0]
  own = jax.lax.dynamic_slice_in_dim(higher, first, totals[0].shape[0])
  return own, *totals


def log_of(sums: tuple[jax.Array, ...]) -> jax.Array:
  """Returns the logarithm of a softmax's normaliser, from its sums."""
  highest, total, *_ = sums
  return highest + jnp.log(total)


def _gradient_sums(scale: jax.Array) -> Reduction:
  """Returns the reduction to the sums that the gradient is made of.

  They are the softmax over rows plus that over columns, times the features of
  the other tower; for each row also times the cosine, for the derivative by the
  scale.
  """

  def init_rows(rows):
    features, _ = rows
    return jnp.zeros_like(features), jnp.zeros_like(features[:, 0])

  def init_columns(columns):
    return jnp.zeros_like(columns[0])

  def add_tile(rows, row_sums, columns, column_sums):
    (images, row_log), (texts, column_log) = rows, columns
    by_images, by_scale = row_sums
    cosines = cosine_similarity(images, texts)  # r c
    logits = scale * cosines
    both = jnp.exp(logits - row_log[:, None]) + jnp.exp(logits - column_log)
    by_images += matmul(both, texts)
    by_scale += jnp.sum(both * cosines, axis=1)
    by_texts = column_sums + matmul(both.T, images)
    return (by_images, by_scale), by_texts

  return Reduction(init_rows, init_columns, add_tile, reduce_scatter)
