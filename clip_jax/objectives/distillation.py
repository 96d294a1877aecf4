"""Distillation from teachers that saw the same pairs (MobileCLIP, 2311.17049).

A student learns, beside or instead of which text belongs to which image, how a
teacher rates all texts of the batch for each image, and all images for each
text: the teacher's softmaxes, at a temperature of the teacher's own. Teachers
are not run: their features are arrays of the batch.

Shapes: B pairs of the global batch, b of one device, E the joint space, which
differs between student and teachers.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from clip_jax.objectives.contrastive import (
  add_to_softmax,
  log_of,
  merge_softmax,
)
from clip_jax.objectives.objective import Term
from clip_jax.objectives.sharded import (
  Axes,
  Form,
  Reduction,
  cosine_similarity,
  exchange_of,
  matmul,
  reduce_scatter,
  sharded_loss,
)

# The image features and the text features of each teacher.
Teachers = Sequence[tuple[jax.Array, jax.Array]]
# (image features, text features, logit scale, teachers) -> loss
DistillationLoss = Callable[
  [jax.Array, jax.Array, jax.Array, Teachers], jax.Array
]


def distillation_loss(
  image_features: Float[Array, 'B E'],
  text_features: Float[Array, 'B E'],
  logit_scale: Float[Array, ''],
  teachers: Teachers,
  teacher_scales: Sequence[float],
) -> Float[Array, '']:
  """Returns how far the student's softmaxes are from the teachers' (section 3).

  Args:
    image_features, text_features: the student's, unit rows.
    logit_scale: the student's multiplier, already exponentiated.
    teachers: image and text features of each, unit rows; constants.
    teacher_scales: the multiplier of each, 1 / temperature.
  Returns:
    Nats: the Kullback-Leibler divergence KL(teacher || student) of the softmax
    over texts and of that over images, a mean over both, pairs and teachers; 0
    where all agree.
  """
  student = logit_scale * cosine_similarity(image_features, text_features)
  divergences = []
  for (images, texts), scale in zip(teachers, teacher_scales, strict=True):
    teacher = scale * cosine_similarity(images, texts)
    divergences += [
      _divergence(teacher, student, axis=1),
      _divergence(teacher, student, axis=0),
    ]
  return sum(divergences) / jnp.asarray(len(divergences))


def _divergence(teacher: jax.Array, student: jax.Array, axis: int) -> jax.Array:
  """Returns KL(teacher || student) of softmaxes over an axis, a mean."""
  target = jax.nn.log_softmax(teacher, axis)
  predicted = jax.nn.log_softmax(student, axis)
  return jnp.sum(jnp.exp(target) * (target - predicted), axis).mean()


def distributed_distillation_loss(
  mesh: Mesh, axes: Axes, form: Form, teacher_scales: Sequence[float]
) -> DistillationLoss:
  """Returns `distillation_loss` with its rows spread over a mesh's devices.

  As in `contrastive.distributed_softmax_loss`, a device computes the logits of
  its own images against all texts, here the student's and those of each
  teacher, in tiles, and computes them again for the gradient.

  Args:
    mesh, axes: the devices, and the axes over which the batch is split.
    form: how the features of texts come to those of images (see `sharded`).
    teacher_scales: the multiplier of each teacher's cosines.
  Returns:
    A function of global arrays, whose batch must be a multiple of the devices
    on `axes`.
  """

  def value(images, texts, scale, bias):
    del bias
    pairs = images[0].shape[0] * jax.lax.axis_size(axes)
    sums = form(_divergence_sums(scale, teacher_scales), images, texts)
    logs = tuple(tuple(map(log_of, side)) for side in sums)
    divergences = jnp.concatenate([*map(_mean_divergence, sums, logs)])
    return jax.lax.psum(jnp.sum(divergences), axes) / (2 * pairs), logs

  def gradients(images, texts, scale, bias, logs):
    pairs = images[0].shape[0] * jax.lax.axis_size(axes)
    row_logs, column_logs = logs
    (by_images, by_scale), by_texts = form(
      _gradient_sums(scale, teacher_scales),
      (images, row_logs),
      (texts, column_logs),
    )
    zeros = [jax.tree.map(jnp.zeros_like, side[1:]) for side in (images, texts)]
    return (
      (scale * by_images / (2 * pairs), *zeros[0]),
      (scale * by_texts / (2 * pairs), *zeros[1]),
      jax.lax.psum(jnp.sum(by_scale), axes) / (2 * pairs),
      jnp.zeros_like(bias),
    )

  loss: Any = sharded_loss(mesh, axes, value, gradients)  # of trees

  def distributed_loss(image_features, text_features, logit_scale, teachers):
    images, texts = zip(*teachers, strict=True)
    return loss(
      (image_features, *images),
      (text_features, *texts),
      logit_scale,
      jnp.zeros_like(logit_scale),
    )

  return distributed_loss


def _logits(
  rows: Sequence[jax.Array],
  columns: Sequence[jax.Array],
  scale: jax.Array,
  teacher_scales: Sequence[float],
) -> list[jax.Array]:
  """Returns the logits of a tile: the student's, and those of each teacher."""
  scales = (scale, *teacher_scales)
  return [
    scale * cosine_similarity(*sides)
    for scale, *sides in zip(scales, rows, columns, strict=True)
  ]


def _divergence_sums(
  scale: jax.Array, teacher_scales: Sequence[float]
) -> Reduction:
  """Returns the reduction to what the divergences are made of.

  For each row and column, the normaliser of the student's softmax; and of each
  teacher's, with the sum of how far the teacher's logits are above the
  student's, weighted by the teacher's exponentials.
  """

  def init(features):
    zeros = jnp.zeros_like(features[0][:, 0])
    teacher = zeros - jnp.inf, zeros, zeros
    return (zeros - jnp.inf, zeros), *(teacher for _ in teacher_scales)

  def add(sums, logits, axis):
    student, *teachers = logits
    own, *rest = sums
    return add_to_softmax(own, student, axis), *(
      add_to_softmax(before, teacher, axis, teacher - student)
      for before, teacher in zip(rest, teachers, strict=True)
    )

  def add_tile(rows, row_sums, columns, column_sums):
    logits = _logits(rows, columns, scale, teacher_scales)
    return add(row_sums, logits, 1), add(column_sums, logits, 0)

  def merge(sums, axes):
    return tuple(merge_softmax(one, axes) for one in sums)

  return Reduction(init, init, add_tile, merge)


def _mean_divergence(
  sums: Sequence[tuple[jax.Array, ...]], logs: Sequence[jax.Array]
) -> Float[Array, ' b']:
  """Returns the divergence of each row or column, a mean over teachers.

  Args:
    sums: of `_divergence_sums`.
    logs: of the normalisers, the student's first.
  """
  student_log, *teacher_logs = logs
  divergences = [
    gap / total + student_log - teacher_log
    for (_, total, gap), teacher_log in zip(sums[1:], teacher_logs, strict=True)
  ]
  return jnp.stack(divergences).mean(axis=0)


def _gradient_sums(
  scale: jax.Array, teacher_scales: Sequence[float]
) -> Reduction:
  """Returns the reduction to the sums that the gradient is made of.

  They are the student's softmaxes less the mean of the teachers', over rows
  plus over columns, times the student's features of the other tower; for each
  row also times the cosine, for the derivative by the scale.
  """

  def init_rows(rows):
    (features, *_), _ = rows
    return jnp.zeros_like(features), jnp.zeros_like(features[:, 0])

  def init_columns(columns):
    return jnp.zeros_like(columns[0][0])

  def add_tile(rows, row_sums, columns, column_sums):
    (images, row_logs), (texts, column_logs) = rows, columns
    by_images, by_scale = row_sums
    logits = _logits(images, texts, scale, teacher_scales)
    student, *teachers = [
      jnp.exp(one - row_log[:, None]) + jnp.exp(one - column_log)
      for one, row_log, column_log in zip(
        logits, row_logs, column_logs, strict=True
      )
    ]
    excess = student - sum(teachers) / len(teachers)
    by_images += matmul(excess, texts[0])
    by_scale += jnp.sum(excess * logits[0], axis=1) / scale
    by_texts = column_sums + matmul(excess.T, images[0])
    return (by_images, by_scale), by_texts

  return Reduction(init_rows, init_columns, add_tile, reduce_scatter)


def teacher_arrays(teacher: int) -> tuple[str, str]:
  """Returns the names of a teacher's image and text features in a batch."""
  return f'teacher_{teacher}_images', f'teacher_{teacher}_texts'


def distillation_term(
  teacher_scales: Sequence[float],
  form: str,
  mesh: Mesh,
  axes: Axes,
  chunk: int,
) -> Term:
  """Returns the term of an objective that distils from teachers.

  Args:
    teacher_scales: of each teacher, whose features are the arrays of the batch
      that `teacher_arrays` names.
    form, mesh, axes, chunk: as in `registry.make_loss`.
  """
  features = 'image_features', 'text_features'
  loss = functools.partial(distillation_loss, teacher_scales=teacher_scales)
  if form != 'dense':
    loss = distributed_distillation_loss(
      mesh, axes, exchange_of(form, axes, chunk), teacher_scales
    )

  def pairs(model, towers, inputs):
    del model, inputs
    return {name: towers[name] for name in features}

  def term_loss(pairs, shared, inputs):
    arrays = [
      tuple(inputs[name] for name in teacher_arrays(i))
      for i in range(len(teacher_scales))
    ]
    images, texts = (pairs[name] for name in features)
    return loss(images, texts, shared['logit_scale'], arrays)

  return Term(pairs, term_loss, frozenset(features))
