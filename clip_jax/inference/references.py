"""Recognises what a reference to a model points at from its content.

A new kind is a row of `KINDS` and a branch of `loading.read_model`.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clip_jax.errors import (
  FailureError,
  MissingModelError,
  UsageError,
  first_few,
)
from clip_jax.files import expand_path
from clip_jax.inference.artifact import is_artifact
from clip_jax.interop import open_clip_run
from clip_jax.interop.published_files import (
  ADAPTER,
  is_hugging_face,
  is_open_clip,
  refuse_adapter,
)
from clip_jax.models import presets

_STORES = ('gs://', 's3://')  # those that Orbax reads


@dataclasses.dataclass(frozen=True)
class Kind:
  """One kind of reference.

  Attributes:
    name: for the code that loads it.
    meaning: for a person who is told what would be right.
    matches: whether a path that exists is of this kind.
  """

  name: str
  meaning: str
  matches: Callable[[Path], bool]


def _is_run(path: Any) -> bool:
  root = path / 'checkpoints'
  return root.is_dir() and any(_is_step(entry) for entry in root.iterdir())


def _is_step(path: Any) -> bool:
  # Python's `isdigit` admits '²', which is no number.
  number = path.name.isascii() and path.name.isdigit()
  return number and (path / 'params').is_dir()


def _is_published(path: Path) -> bool:
  return path.is_dir() and (is_hugging_face(path) or is_open_clip(path))


def _is_open_clip_run(path: Path) -> bool:
  run = path.parent if path.name == 'checkpoints' else path
  return path.is_dir() and open_clip_run.is_run(run)


KINDS = (
  Kind('run', "a run's workdir, which holds checkpoints/STEP", _is_run),
  Kind('step', 'one checkpoints/STEP of a run', _is_step),
  Kind('exported', 'what `clip-jax export` wrote', is_artifact),
  Kind(
    'published',
    'a directory with config.json (transformers) or open_clip_config.json, '
    'and weights',
    _is_published,
  ),
  Kind(
    'open_clip_run',
    "an open_clip run's directory, which holds params.txt and "
    'checkpoints/epoch_N.pt',
    _is_open_clip_run,
  ),
  Kind(
    'weights',
    'a weight file (.safetensors, .pt, .bin, .npz)',
    Path.is_file,
  ),
)


def recognise(reference: str | os.PathLike) -> tuple[str, Any]:
  """Returns the kind of a reference (a name in `KINDS`) and its path.

  The path of a URL is an `epath.Path`; a run or a step has one.

  Raises:
    MissingModelError: nothing is there.
    UsageError: nothing that is known is there.
    FailureError: the object store of a URL cannot be read.
  """
  text = expand_path(reference)
  if '://' in text:
    return _recognise_remote(text)
  path = Path(text)
  for kind in KINDS:
    if path.exists() and kind.matches(path):
      return kind.name, path
  if (path / ADAPTER).is_file():
    refuse_adapter(path)
  known = '; or '.join(kind.meaning for kind in KINDS)
  wrong = UsageError if path.exists() else MissingModelError
  raise wrong(f'no model in {path}: {_finding(path)}. Expected {known}.')


def _recognise_remote(url: str) -> tuple[str, Any]:
  """Returns the kind of a URL and its path."""
  from etils import epath

  if url.startswith(_STORES):
    path: Any = epath.Path(url)
    try:
      for kind in KINDS:
        if kind.name in ('run', 'step') and kind.matches(path):
          return kind.name, path
    except Exception as error:  # of gcsfs, s3fs, or one that is not installed
      raise FailureError(f'{url} cannot be read: {error}') from error
  raise MissingModelError(
    f"no model in {url}: of a URL, a run's workdir or one of its "
    f'checkpoints/STEP is read, in {" or ".join(_STORES)}; copy any other '
    'model to this machine.'
  )


def _finding(path: Path) -> str:
  """Returns what is at a path that is no model, in a few words."""
  if not path.exists():
    try:
      presets.find(os.fspath(path))
    except UsageError:
      return 'it does not exist'
    return (
      'it does not exist, and weights are not downloaded for a published name: '
      'fetch the repository and name its folder, or name a file of weights, '
      f'with --preset={path} (preset=) beside it'
    )
  if not path.is_dir():
    return 'it is a device or a pipe'
  names = sorted(entry.name for entry in path.iterdir())
  if not names:
    return 'the folder is empty'
  if 'checkpoints' in names:
    return 'its folder checkpoints/ has no complete checkpoint yet'
  return f'the folder holds {first_few(names)}'
