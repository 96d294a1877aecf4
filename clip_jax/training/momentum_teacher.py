"""Steps with a momentum teacher, and those before it begins (SigLIP 2).

The terms of self-distillation begin after a part of the run. Until then nothing
of them is computed, and their heads stay as they were drawn. The teacher begins
as a copy of the student, and then follows it as a moving average. Its centre
begins as the mean of its first batch: from zero, as DINO has it, its answers
would become less sure for some twenty steps, and both losses would rise.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clip_jax.data.images import images_of
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.errors import UsageError
from clip_jax.models.config import CLIPConfig, ResNetConfig
from clip_jax.models.counting import TRAINING_ONLY
from clip_jax.models.dual_encoder import normalize
from clip_jax.models.self_distillation import (
  HeadConfig,
  SelfDistilledEncoder,
)
from clip_jax.objectives import self_distillation as terms
from clip_jax.objectives.objective import Arrays, Term
from clip_jax.objectives.self_distillation import Prototypes, unit_columns
from clip_jax.objectives.views import crop, draw_views
from clip_jax.parallel.partitioning import activations_like_batch
from clip_jax.training.config import Config, taught_terms
from clip_jax.training.gradients import micro_batches
from clip_jax.training.state import TrainState
from clip_jax.training.step import Batch, TrainStep, moving_average
from clip_jax.trees import flat, nested

# The head of each term.
HEAD_OF = {
  'self_distillation': 'image_head',
  'masked_prediction': 'patch_head',
}


def make_encoder(
  config: Config, model: CLIPConfig, dtype: Any, remat: tuple[str, str]
) -> SelfDistilledEncoder:
  """Returns the module with the heads that a config's terms need.

  Args:
    config: with one of `TAUGHT`.
    model, dtype, remat: as of `DualEncoder`.
  Raises:
    UsageError: the model or its images are not for these terms.
  """
  _check_model(config, model)
  own = config.objective.self_distillation
  head = HeadConfig(own.hidden, own.features, own.prototypes)
  heads = tuple(HEAD_OF[name] for name in taught_terms(config))
  return SelfDistilledEncoder(model, dtype, remat, head, heads)


def _check_model(config: Config, model: CLIPConfig) -> None:
  """Refuses a model whose image tower has no heads to distil from."""
  name = f'objective.added.{taught_terms(config)[0]}'
  if config.data.sequence_lengths:
    raise UsageError(
      f'{name} makes crops of squares, and data.sequence_lengths='
      f'{tuple(config.data.sequence_lengths)} patches of native aspect: leave '
      'one of them out.'
    )
  if model.lora is not None:
    raise UsageError(
      f'{name} trains heads beside the image tower, and model.lora.rank='
      f'{model.lora.rank} adapters alone: leave one of them out.'
    )
  if isinstance(model.image, ResNetConfig):
    raise UsageError(
      f'{name} is for a ViT, and the image tower is a ResNet: leave it at 0.'
    )
  size = config.objective.self_distillation.local_size
  patch_size = model.image.patch_size
  if size % patch_size or size < patch_size:
    raise UsageError(
      f'objective.self_distillation.local_size={size} must be a multiple of '
      f'model.image.patch_size={patch_size}, such as '
      f'{patch_size * max(1, round(size / patch_size))}.'
    )


def before_teacher(step: TrainStep) -> TrainStep:
  """Returns a step that leaves the heads alone, to their weight decay too.

  Args:
    step: of the terms that begin at once.
  """

  def train_step(state: TrainState, batch: Batch):
    updated, metrics = step(state, batch)

    def with_old_heads(new: Any, old: Any) -> Any:
      return {**new, **{k: old[k] for k in old if k == TRAINING_ONLY}}

    return dataclasses.replace(
      updated,
      params=with_old_heads(updated.params, state.params),
      ema=with_old_heads(updated.ema, state.ema),
    ), metrics

  return train_step


def with_teacher(
  make_step: Callable[[Mapping[str, Term]], TrainStep],
  module: SelfDistilledEncoder,
  preprocessing: Preprocessing,
  mesh: Mesh,
  config: Config,
  begin: int,
) -> TrainStep:
  """Returns a step with a teacher's terms.

  All that is random is drawn from (seed, step). A step that is skipped, since
  it is not finite, leaves the teacher as it was, too.

  Args:
    make_step: (these terms by name) -> the step that minimizes them and the
      others.
    preprocessing, mesh: as of `make_train_step`.
    begin: updates before the first of these steps.
  """
  names, fields = taught_terms(config), config.objective.self_distillation
  tower: Any = module.config.image
  micro_batch = config.objective.micro_batch

  def teach(student: SelfDistilledEncoder, inputs: Batch) -> Arrays:
    image = normalize(images_of(inputs), preprocessing.mean, preprocessing.std)
    views = crop(image, inputs['global_crop'], tower.image_size)
    at = inputs.get('masked_patches')
    return student.view_features(views, module.heads, at)

  def teacher_features(params: Any, inputs: Batch) -> Arrays:
    def features(inputs: Batch) -> Arrays:
      with activations_like_batch(mesh):
        made: Any = module.apply({'params': params}, inputs, method=teach)
      return {f'teacher_{head}': array for head, array in made.items()}

    if not micro_batch:
      return features(inputs)
    split, join = micro_batches(mesh, micro_batch)
    pieces = jax.lax.map(features, jax.tree.map(split, inputs))
    return jax.tree.map(join, pieces)

  def term_of(name: str, teacher: Any) -> Term:
    head = HEAD_OF[name]
    prototypes = Prototypes(_columns(teacher, head), teacher['centre'][head])
    return getattr(terms, name)(fields, tower, prototypes, module.dtype)

  def followed(teacher: Any, student: Any, features: Arrays) -> Any:
    """Returns the teacher after it has seen a batch, and the next student."""
    means = {head: _mean(teacher, head, features) for head in module.heads}
    return {
      'params': moving_average(
        teacher['params'], student['params'], fields.teacher_decay
      ),
      'centre': moving_average(teacher['centre'], means, fields.centre_decay),
    }

  def train_step(state: TrainState, batch: Batch):
    teacher = jax.tree.map(
      lambda first, now: jnp.where(state.step == begin, first, now),
      module.first_teacher(state.params),
      state.teacher,
    )
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    key = jax.random.fold_in(key, 1)  # patches are dropped by the other
    draws = draw_views(key, len(batch['image']), tower, fields, names)
    # What the teacher has no parameters for, as a temperature, is not used.
    params = nested(flat(state.params) | flat(teacher['params']))
    features = teacher_features(params, {'image': batch['image'], **draws})
    teacher['centre'] = jax.tree.map(
      lambda mean, now: jnp.where(state.step == begin, mean, now),
      {head: _mean(teacher, head, features) for head in module.heads},
      teacher['centre'],
    )
    step = make_step({name: term_of(name, teacher) for name in names})
    updated, metrics = step(
      dataclasses.replace(state, teacher=teacher),
      {**batch, **draws, **features},
    )
    teacher = jax.tree.map(
      lambda now, new: jnp.where(metrics['skipped'] > 0, now, new),
      teacher,
      followed(teacher, module.first_teacher(updated.params), features),
    )
    return dataclasses.replace(updated, teacher=teacher), metrics

  return train_step


def _columns(teacher: Any, head: str) -> jax.Array:
  return teacher['params'][TRAINING_ONLY][head]['prototypes']


def _mean(teacher: Any, head: str, features: Arrays) -> jax.Array:
  """Returns the mean cosines with the prototypes, of all that a head saw."""
  seen = features[f'teacher_{head}']
  mean = seen.reshape(-1, seen.shape[-1]).mean(axis=0)
  return mean @ unit_columns(_columns(teacher, head))
