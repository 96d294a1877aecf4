"""Self-distillation and masked prediction, as SigLIP 2 adds them.

A teacher, the moving average of the image tower and of its heads, sees a large
crop of each image, the global view. The student is to say of small crops what
the teacher says of that (`self_distillation`: SILC, arXiv 2310.13355), and of
patches that are hidden from it what the teacher says of these
(`masked_prediction`: TIPS, arXiv 2410.16512, after iBOT, arXiv 2111.07832).

What either says is a softmax over prototypes (DINO, arXiv 2104.14294): the
cosines with them, divided by a temperature. The teacher's is sharper, and a
running mean is subtracted from its cosines (centring); each by itself would
let all images become alike. The teacher is not run here: its features are
arrays of the batch, `teacher_HEAD`.

Shapes: B pairs, V local views, M masked patches, F features, K prototypes.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from clip_jax.data.images import Patches
from clip_jax.errors import UsageError
from clip_jax.models.config import VisionTransformerConfig
from clip_jax.models.dual_encoder import DualEncoder, unit_length
from clip_jax.models.layers import accumulation_dtype
from clip_jax.models.vision_transformer import split_into_patches
from clip_jax.objectives.objective import Arrays, Inputs, Term
from clip_jax.objectives.views import crop

# Views, or patches, whose logits over the prototypes are in memory at a time.
_CHUNK = 8


class Temperatures(NamedTuple):
  """What cosines with prototypes are divided by."""

  student: float
  teacher: float


class Prototypes(NamedTuple):
  """What a teacher compares its features with.

  Attributes:
    columns: of a head, of any length.
    centre: the running mean of the cosines.
  """

  columns: Float[Array, 'F K']
  centre: Float[Array, ' K']


def consistency_loss(
  student: Float[Array, 'B N F'],
  prototypes: Float[Array, 'F K'],
  teacher: Float[Array, 'B N F'],
  taught: Prototypes,
  temperatures: Temperatures,
  dtype: Any = jnp.float32,
) -> Float[Array, ' B']:
  """Returns the cross-entropy of the student's softmaxes (DINO, equation 2).

  Args:
    student, teacher: features of unit length, of the same N views or patches.
    prototypes: the student's.
    taught: the teacher's.
    dtype: of the products.
  Returns:
    Nats, a mean over N; at least the entropy of the teacher's softmaxes.
  """
  own, theirs = unit_columns(prototypes), unit_columns(taught.columns)

  @jax.checkpoint
  def cross_entropy(views: tuple[jax.Array, jax.Array]) -> jax.Array:
    ours, teachers = views  # B F
    centred = _product(teachers, theirs, dtype) - taught.centre
    target = jax.nn.softmax(centred / temperatures.teacher)
    logits = _product(ours, own, dtype) / temperatures.student
    return -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)

  views = student.swapaxes(0, 1), teacher.swapaxes(0, 1)  # N B F
  count = student.shape[1]
  each = jax.lax.map(cross_entropy, views, batch_size=min(_CHUNK, count))
  return each.mean(axis=0)


def unit_columns(x: Float[Array, 'F K']) -> Float[Array, 'F K']:
  """Returns columns divided by their L2 norm."""
  return unit_length(x.T).T


def _product(
  features: Float[Array, 'B F'], columns: Float[Array, 'F K'], dtype: Any
) -> Float[Array, 'B K']:
  """Returns a product in `dtype`, summed in float32 or wider."""
  return jnp.matmul(
    features.astype(dtype),
    columns.astype(dtype),
    preferred_element_type=accumulation_dtype(dtype),
  )


def self_distillation(
  fields: Any, tower: VisionTransformerConfig, taught: Prototypes, dtype: Any
) -> Term:
  """Returns the term by which local views agree with the teacher's global one.

  Args:
    fields: `objective.self_distillation` of configs/base.py.
    tower: that sees the views; the positions of the small ones are resized.
    taught: of the head of images.
    dtype: of the products with prototypes.
  """
  size = fields.local_size
  local = dataclasses.replace(tower, image_size=size)
  temperatures = temperatures_of(fields)

  def pairs(model: DualEncoder, towers: Arrays, inputs: Inputs) -> Arrays:
    del towers
    student: Any = model  # a `SelfDistilledEncoder`
    views = jax.vmap(crop, in_axes=(None, 1, None), out_axes=1)(
      inputs['image'], inputs['local_crops'], size
    )  # B V size size 3
    count = views.shape[1]
    pixels = split_into_patches(views.reshape(-1, *views.shape[2:]), local)
    grid = jnp.full((len(pixels), 2), local.grid, jnp.int32)
    features = student.view_features(Patches(pixels, grid), ('image_head',))
    features = features['image_head']
    teacher = inputs['teacher_image_head'][:, None]  # B 1 F
    loss = consistency_loss(
      features.reshape(-1, count, features.shape[-1]),
      student.self_distillation.image_head.prototypes,
      jnp.repeat(teacher, count, axis=1),
      taught,
      temperatures,
      dtype,
    )
    return {'self_distillation': loss}

  return Term(pairs, _mean_of('self_distillation'))


def masked_prediction(
  fields: Any, tower: VisionTransformerConfig, taught: Prototypes, dtype: Any
) -> Term:
  """Returns the term by which hidden patches of the global view are predicted.

  Args:
    fields, tower, dtype: as of `self_distillation`.
    taught: of the head of patches.
  """
  temperatures = temperatures_of(fields)

  def pairs(model: DualEncoder, towers: Arrays, inputs: Inputs) -> Arrays:
    del towers
    student: Any = model  # a `SelfDistilledEncoder`
    features = student.view_features(
      crop(inputs['image'], inputs['global_crop'], tower.image_size),
      ('patch_head',),
      at=inputs['masked_patches'],
      masked=True,
    )
    loss = consistency_loss(
      features['patch_head'],
      student.self_distillation.patch_head.prototypes,
      inputs['teacher_patch_head'],
      taught,
      temperatures,
      dtype,
    )
    return {'masked_prediction': loss}

  return Term(pairs, _mean_of('masked_prediction'))


def check_fields(fields: Any) -> None:
  """Refuses values of `objective.self_distillation` that are impossible.

  Raises:
    UsageError: it names the first one.
  """
  ranges = {
    'at least 0 and below 1': (
      lambda value: 0 <= value < 1,
      ('begin', 'teacher_decay', 'centre_decay'),
    ),
    'above 0 and below 1': (lambda value: 0 < value < 1, ('masked',)),
    'above 0': (
      lambda value: value > 0,
      ('student_temperature', 'teacher_temperature'),
    ),
    'at least 1': (
      lambda value: value >= 1,
      ('local_views', 'local_size', 'hidden', 'features'),
    ),
    'at least 2': (lambda value: value >= 2, ('prototypes',)),
  }
  for words, (holds, names) in ranges.items():
    for name in names:
      if not holds(fields[name]):
        raise UsageError(
          f'objective.self_distillation.{name}={fields[name]} must be {words}.'
        )


def temperatures_of(fields: Any) -> Temperatures:
  """Returns those of `objective.self_distillation` of configs/base.py."""
  return Temperatures(fields.student_temperature, fields.teacher_temperature)


def _mean_of(name: str) -> Any:
  def loss(pairs: Arrays, shared: Arrays, inputs: Inputs) -> jax.Array:
    del shared, inputs
    return pairs[name].mean()

  return loss
