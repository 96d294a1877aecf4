"""The directory of an open_clip training run.

RUN/params.txt                  'name: value', a line for each option
RUN/checkpoints/epoch_N.pt      what `torch.save` wrote after epoch N
RUN/checkpoints/epoch_latest.pt with --save-most-recent
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_jax.errors import FailureError
from clip_jax.files import read_text

PARAMS = 'params.txt'
_EPOCH = re.compile(r'epoch_(\d{1,9})\.pt', re.ASCII)
_LATEST = 'epoch_latest.pt'
_NUMBER = re.compile(r'-?\d+(?:\.\d+)?(?:e-?\d+)?')


def is_run(path: Path) -> bool:
  """Returns whether a directory is one of open_clip's runs."""
  try:
    return (path / PARAMS).is_file() and 'model' in read_params(path / PARAMS)
  except FailureError:  # a file of that name in whatever format
    return False


def read_params(file: Path) -> dict[str, str]:
  """Returns the options of a run by name, without those that are None.

  Raises:
    FailureError: the file cannot be read.
  """
  pairs = (line.partition(': ') for line in read_text(file).splitlines())
  return {
    name.strip(): value.strip()
    for name, colon, value in pairs
    if colon and value.strip() not in ('', 'None')
  }


def params_of(weights: Path) -> tuple[Path, dict[str, str]] | None:
  """Returns the file of options of a checkpoint's run, and the options.

  None stands for a checkpoint of no run.
  """
  for run in (weights.parent, weights.parent.parent):
    if is_run(run):
      return run / PARAMS, read_params(run / PARAMS)
  return None


def newest(run: Path) -> tuple[Path, str]:
  """Returns the newest checkpoint of a run, and a sentence that says so.

  Raises:
    FailureError: there is none.
  """
  folder = run / 'checkpoints'
  folder = folder if folder.is_dir() else run
  epochs = {
    int(match[1]): file
    for file in folder.iterdir()
    if (match := _EPOCH.fullmatch(file.name))
  }
  latest = folder / _LATEST
  if latest.is_file():
    from clip_jax.interop.torch_file import open_torch
    from clip_jax.interop.zip_archive import ZipArchive

    # Its name does not say its epoch.
    with open_torch(latest, ZipArchive(latest)) as tensors:
      epoch = tensors.metadata.get('epoch')
    if type(epoch) is int and epoch > max(epochs, default=-1):
      epochs[epoch] = latest
    elif not epochs:
      epochs[0] = latest
  if not epochs:
    raise FailureError(
      f'{run} is a run of open_clip, and holds no checkpoints/epoch_N.pt yet.'
    )
  last = max(epochs)
  return epochs[last], (
    f'{epochs[last]} is taken, the newest of {len(epochs)} in this run of '
    'open_clip.'
  )


def activation(params: Mapping[str, str]) -> str:
  """Returns what open_clip's own models of a run compute with."""
  quick = (
    params.get('force_quick_gelu') == 'True'
    or params['model'].endswith('-quickgelu')
    # OpenAI's weights make every model one with QuickGELU there.
    or params.get('pretrained', '').lower() == 'openai'
  )
  return 'quick_gelu' if quick else 'gelu'


def preprocess_cfg(params: Mapping[str, str]) -> dict[str, Any]:
  """Returns what the options say of `preprocess_cfg`."""
  fields: dict[str, Any] = {
    name: params[f'image_{name}']
    for name in ('interpolation', 'resize_mode')
    if f'image_{name}' in params
  }
  for name in ('mean', 'std'):
    if f'image_{name}' in params:
      numbers = _NUMBER.findall(params[f'image_{name}'])
      fields[name] = [float(number) for number in numbers]
  return fields
