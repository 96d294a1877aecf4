"""Opens the teachers of a run, which distils from their stored features."""

from collections.abc import Sequence

from clip_jax.data.augment import Augmentation
from clip_jax.data.pipeline import captioned_sources
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.data.sources import Source
from clip_jax.inference.teacher_features import (
  TeacherArrays,
  TeacherFeatures,
  describe_views,
)
from clip_jax.objectives.distillation import teacher_arrays
from clip_jax.training.config import Config, views_of


def open_teachers(
  config: Config, sources: Sequence[Source], preprocessing: Preprocessing
) -> TeacherArrays:
  """Opens the teachers of a config, and checks that they are of its data.

  Args:
    sources: of the run.
    preprocessing: of the run.
  Raises:
    UsageError: there is no such teacher, or it saw something else.
  """
  views = views_of(config)
  assert views is not None  # `check_config` has seen to that
  augmentation = Augmentation.from_dict(config.data.augment.to_dict())
  of_views = describe_views(views, augmentation, preprocessing)
  captioned = captioned_sources(sources)
  teachers = [TeacherFeatures(folder) for folder in config.data.teachers]
  for teacher in teachers:
    teacher.check(captioned, config.data.captions, views, of_views)
  return TeacherArrays(
    teachers, [teacher_arrays(i) for i in range(len(teachers))]
  )
