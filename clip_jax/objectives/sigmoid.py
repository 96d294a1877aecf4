"""The sigmoid loss (SigLIP, arXiv 2303.15343).

Each of the B x B combinations of an image and a text is a binary classification
of its own: there is no normaliser to sum over devices.

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


def sigmoid_loss(
  image_features: Float[Array, 'B E'],
  text_features: Float[Array, 'B E'],
  logit_scale: Float[Array, ''],
  logit_bias: Float[Array, ''] | float,
) -> Float[Array, '']:
  """Returns the binary cross-entropy of all B x B pairs (algorithm 1).

  Args:
    image_features, text_features: unit rows; row i of each is one pair.
    logit_scale: the multiplier itself, already exponentiated.
    logit_bias: added to each logit; a negative one at the start says that most
      combinations do not match.
  Returns:
    Nats, summed over the B texts for each image, a mean over images.
  """
  pairs = image_features.shape[0]
  logits = (
    logit_scale * cosine_similarity(image_features, text_features) + logit_bias
  )
  signs = 2 * jnp.eye(pairs, dtype=logits.dtype) - 1
  return -jnp.sum(jax.nn.log_sigmoid(signs * logits)) / pairs


def distributed_sigmoid_loss(mesh: Mesh, axes: Axes, form: Form) -> Loss:
  """Returns `sigmoid_loss` with its rows spread over the devices of a mesh.

  The losses of all B x B combinations are summed, in tiles, as if none matched.
  For the B that do, -log sigmoid(x) = -log sigmoid(-x) - x corrects the sum.

  Args:
    mesh, axes: the devices, and the axes over which the batch is split.
    form: how the features of texts come to those of images (see `sharded`); the
      one of the paper's section 3.3 is `ring_form`.
  Returns:
    A function of global arrays with the signature of `sigmoid_loss`, whose
    batch must be a multiple of the devices on `axes`.
  """

  def value(images, texts, scale, bias):
    pairs = images.shape[0] * jax.lax.axis_size(axes)
    rows, _ = form(_negative_losses(scale, bias), images, texts)
    matched = scale * jnp.sum(images * texts, axis=-1) + bias
    return jax.lax.psum(jnp.sum(rows - matched), axes) / pairs, ()

  def gradients(images, texts, scale, bias, saved):
    del saved
    pairs = images.shape[0] * jax.lax.axis_size(axes)
    (by_images, by_scale, by_bias), by_texts = form(
      _gradient_sums(scale, bias), images, texts
    )
    matched = jnp.sum(images * texts, axis=-1)
    return (
      scale * (by_images - texts) / pairs,
      scale * (by_texts - images) / pairs,
      jax.lax.psum(jnp.sum(by_scale - matched), axes) / pairs,
      jax.lax.psum(jnp.sum(by_bias - 1), axes) / pairs,
    )

  return sharded_loss(mesh, axes, value, gradients)


def _negative_losses(scale: jax.Array, bias: jax.Array) -> Reduction:
  """Returns the reduction to each row's loss if no column matched it."""

  def add_tile(rows, row_sums, columns, column_sums):
    logits = scale * cosine_similarity(rows, columns) + bias
    return row_sums + jax.nn.softplus(logits).sum(1), column_sums

  return Reduction(
    init_rows=lambda rows: jnp.zeros_like(rows[:, 0]),
    init_columns=lambda columns: (),
    add_tile=add_tile,
    merge=lambda sums, axes: sums,
  )


def _gradient_sums(scale: jax.Array, bias: jax.Array) -> Reduction:
  """Returns the reduction to the sums that the gradient is made of.

  They are the sigmoids times the features of the other tower; for each row also
  times the cosine and times one, for the derivatives by scale and bias.
  """

  def init_rows(rows):
    zeros = jnp.zeros_like(rows[:, 0])
    return jnp.zeros_like(rows), zeros, zeros

  def add_tile(images, row_sums, texts, column_sums):
    by_images, by_scale, by_bias = row_sums
    cosines = cosine_similarity(images, texts)  # r c
    matches = jax.nn.sigmoid(scale * cosines + bias)
    by_images += matmul(matches, texts)
    by_scale += jnp.sum(matches * cosines, axis=1)
    by_bias += jnp.sum(matches, axis=1)
    by_texts = column_sums + matmul(matches.T, images)
    return (by_images, by_scale, by_bias), by_texts

  return Reduction(init_rows, jnp.zeros_like, add_tile, reduce_scatter)
