"""The symmetric softmax loss (CLIP paper, section 2.3, figure 3): the formula
over whole arrays, and the same number from the rows of each device.

Shapes: B pairs of the global batch, b of one device, E the joint space.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from clip_jax.objectives.pairwise import (
  Axes,
  Loss,
  Pass,
  Sweep,
  matmul,
  product,
  recomputed,
  summed_over_devices,
)


def softmax_loss(
  image_features: Float[Array, 'B E'],
  text_features: Float[Array, 'B E'],
  logit_scale: Float[Array, ''],
  logit_bias: Float[Array, ''] | float = 0.0,
) -> Float[Array, '']:
  """Symmetric cross-entropy over pairs, the whole B x B product at once.

  Args:
    image_features, text_features: unit rows; row i of each is one pair.
    logit_scale: the multiplier itself, already exponentiated.
    logit_bias: cancels in a softmax, whatever it is.
  Returns:
    Mean nats a pair; ln(B) where the features carry nothing.
  """
  del logit_bias
  logits = logit_scale * product(image_features, text_features)
  rows = jax.nn.log_softmax(logits, axis=1)
  columns = jax.nn.log_softmax(logits, axis=0)
  return -(jnp.diagonal(rows).mean() + jnp.diagonal(columns).mean()) / 2


def distributed_softmax_loss(mesh: Mesh, axes: Axes, sweep: Sweep) -> Loss:
  """`softmax_loss` with its rows spread over the devices of a mesh.

  A device computes the logits of its own images against all texts, b x B, and
  from them both cross-entropies: the normalisers of rows are its own, those of
  columns are summed over the devices, so that the product is made once and one
  side's features travel. The gradient makes the logits again.

  Args:
    mesh, axes: the devices, and the axes over which the batch is split.
    sweep: how columns come to rows (`objectives/pairwise.py`).
  Returns:
    A function of global arrays with the signature of `softmax_loss`, whose
    batch must be a multiple of the devices on `axes`.
  """

  def value(images, texts, scale, bias):
    del bias
    pairs = images.shape[0] * jax.lax.axis_size(axes)
    rows, columns = sweep(_normalisers(scale), images, texts)
    kept = _log(rows), _log(columns)
    matched = scale * jnp.sum(images * texts, axis=-1)
    total = jnp.sum(kept[0] + kept[1] - 2 * matched)
    return jax.lax.psum(total, axes) / (2 * pairs), kept

  def gradients(images, texts, scale, bias, kept):
    pairs = images.shape[0] * jax.lax.axis_size(axes)
    rows, columns = kept
    (by_images, by_scale), by_texts = sweep(
      _probabilities(scale), (images, rows), (texts, columns)
    )
    matched = jnp.sum(images * texts, axis=-1)
    by_scale = jax.lax.psum(jnp.sum(by_scale - 2 * matched), axes)
    return (
      scale * (by_images - 2 * texts) / (2 * pairs),
      scale * (by_texts - 2 * images) / (2 * pairs),
      by_scale / (2 * pairs),
      jnp.zeros_like(bias),
    )

  return recomputed(mesh, axes, value, gradients)


def _normalisers(scale: jax.Array) -> Pass:
  """For each row and column of logits: their maximum, and the sum of their
  exponentials over that of the maximum, as tiles come in."""

  def start(features):
    zeros = jnp.zeros_like(features[:, 0])
    return zeros - jnp.inf, zeros

  def add(sums, logits, axis):
    highest, total = sums
    higher = jnp.maximum(highest, logits.max(axis))
    total = total * jnp.exp(highest - higher)
    total += jnp.exp(logits - jnp.expand_dims(higher, axis)).sum(axis)
    return higher, total

  def visit(rows, row_sums, columns, column_sums):
    logits = scale * product(rows, columns)
    return add(row_sums, logits, 1), add(column_sums, logits, 0)

  def merge(sums, axes):
    highest, total = sums
    higher = jax.lax.pmax(highest, axes)
    total = total * jnp.exp(highest - higher)
    total = summed_over_devices(total, axes)
    first = jax.lax.axis_index(axes) * total.shape[0]
    own = jax.lax.dynamic_slice_in_dim(higher, first, total.shape[0])
    return own, total

  return Pass(start, start, visit, merge)


def _log(sums: tuple[jax.Array, jax.Array]) -> jax.Array:
  highest, total = sums
  return highest + jnp.log(total)


def _probabilities(scale: jax.Array) -> Pass:
  """The softmax of rows plus that of columns, times the other side's features:
  for each row also times the cosine, which is the derivative by the scale."""

  def start_rows(rows):
    features, _ = rows
    return jnp.zeros_like(features), jnp.zeros_like(features[:, 0])

  def start_columns(columns):
    return jnp.zeros_like(columns[0])

  def visit(rows, row_sums, columns, column_sums):
    (images, row_log), (texts, column_log) = rows, columns
    by_images, by_scale = row_sums
    cosines = product(images, texts)  # r c
    logits = scale * cosines
    both = jnp.exp(logits - row_log[:, None]) + jnp.exp(logits - column_log)
    by_images += matmul(both, texts)
    by_scale += jnp.sum(both * cosines, axis=1)
    by_texts = column_sums + matmul(both.T, images)
    return (by_images, by_scale), by_texts

  return Pass(start_rows, start_columns, visit, summed_over_devices)
