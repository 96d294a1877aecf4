"""Compiled programs kept between runs: a verb starts at once the second time.

In a program of your own, do the same before the first call of a model:
`jax.config.update('jax_compilation_cache_dir', DIR)`, or set
JAX_COMPILATION_CACHE_DIR, and JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.
"""

import os
from pathlib import Path

_MIN_SECONDS = 'jax_persistent_cache_min_compile_time_secs'


def use() -> None:
  """Lets JAX keep what it compiles in the user's cache folder.

  JAX_COMPILATION_CACHE_DIR, if set, has been obeyed already (empty: none is
  kept). A folder that cannot be written is left alone.
  """
  folder = os.environ.get('JAX_COMPILATION_CACHE_DIR')
  if folder is None:
    folder = _writable_folder()
  if not folder:
    return

  import jax

  jax.config.update('jax_compilation_cache_dir', os.fspath(folder))
  # By itself JAX keeps what took a second to compile, and a verb's many small
  # programs, most of its start on a fast machine, would be compiled each time.
  if _MIN_SECONDS.upper() not in os.environ:
    jax.config.update(_MIN_SECONDS, 0.0)


def _writable_folder() -> Path | None:
  try:
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError):  # RuntimeError: there is no home
    return None
  return folder if os.access(folder, os.W_OK) else None


def _folder() -> Path:
  root = os.environ.get('XDG_CACHE_HOME')
  return (Path(root) if root else Path.home() / '.cache') / 'clip_jax' / 'xla'
