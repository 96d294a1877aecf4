"""Compiled programs kept between runs: a verb starts at once the second time.

In a program of your own, do the same before the first call of a model:
`jax.config.update('jax_compilation_cache_dir', DIR)`, or set
JAX_COMPILATION_CACHE_DIR, and JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.
"""

import os
from pathlib import Path

from clip_jax.errors import UsageError
from clip_jax.files import typed_path

_CHOICE = 'JAX_COMPILATION_CACHE_DIR'
_MIN_SECONDS = 'jax_persistent_cache_min_compile_time_secs'


def use() -> None:
  """Lets JAX keep what it compiles in the user's cache folder.

  JAX_COMPILATION_CACHE_DIR, if set, has been obeyed already (empty: none is
  kept), but for a `~` in it. A folder that cannot be written is left alone.
  """
  folder = os.environ.get(_CHOICE)
  if folder is None or folder.startswith('~'):
    folder = _writable_folder(folder)
  if not folder:
    return

  import jax

  jax.config.update('jax_compilation_cache_dir', os.fspath(folder))
  # Unless told otherwise, JAX keeps only what took a second to compile, and a
  # verb's many small programs, most of its start on a fast machine, would be
  # compiled each time.
  if _MIN_SECONDS.upper() not in os.environ:
    jax.config.update(_MIN_SECONDS, 0.0)


def _writable_folder(chosen: str | None) -> Path | None:
  try:
    folder = typed_path(chosen) if chosen else _folder()
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, UsageError):  # UsageError: there is no home
    return None
  return folder if os.access(folder, os.W_OK) else None


def _folder() -> Path:
  root = os.environ.get('XDG_CACHE_HOME')
  return typed_path(root or '~/.cache') / 'clip_jax' / 'xla'
