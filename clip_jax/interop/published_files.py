"""Tells directories of published weights apart, before any weights are read.

It imports no reader of weights, so that a model of this package's own loads
without them.
"""

import dataclasses
from pathlib import Path

from clip_jax.errors import FailureError, UsageError
from clip_jax.files import read_object

OPEN_CLIP_CONFIG = 'open_clip_config.json'
ADAPTER = 'adapter_config.json'  # PEFT's


@dataclasses.dataclass(frozen=True)
class Hints:
  """Facts about weights that a person states and their files do not.

  Attributes:
    preset: of a bare weight file, the published name of its model.
    activation: of the Transformers of a bare weight file, or of an open_clip
      directory whose config leaves it out.
    heads: of a bare weight file: of the image tower, or of both.
    weights: which of several models in a file, such as 'ema_state_dict'.
  """

  preset: str | None = None
  activation: str | None = None
  heads: tuple[int, ...] | None = None
  weights: str | None = None

  def refuse(self, teller: str) -> None:
    """Refuses hints for files that say everything: they would be ignored.

    Raises:
      UsageError: there is one.
    """
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value is not None:
        raise UsageError(
          f'{field.name}={value!r} is for a bare weight file: {teller} says '
          'what it is.'
        )


NO_HINTS = Hints()


def is_open_clip(path: Path) -> bool:
  """Returns whether a directory has a model config of open_clip's."""
  return (path / OPEN_CLIP_CONFIG).exists() or 'vision_cfg' in read_object(
    path / 'config.json'
  )


def is_hugging_face(path: Path) -> bool:
  """Returns whether a directory has a config of transformers'."""
  return 'model_type' in read_object(path / 'config.json')


def refuse_adapter(path: Path) -> None:
  """Refuses an adapter, which holds changes of a model and no model.

  Args:
    path: of a directory with an `adapter_config.json`, or of a file in it.
  Raises:
    UsageError: always; it shows how the adapter is merged.
  """
  folder = path if path.is_dir() else path.parent
  try:
    base = read_object(folder / ADAPTER).get('base_model_name_or_path')
  except FailureError:
    base = None
  raise UsageError(
    f'{path} is a PEFT adapter, not a model: merge it first: python -c "from '
    'transformers import AutoModel; from peft import PeftModel; '
    f'PeftModel.from_pretrained(AutoModel.from_pretrained('
    f'{base or "BASE MODEL"!r}), {str(folder)!r}).merge_and_unload()'
    ".save_pretrained('merged')\", and name that folder, merged."
  )
