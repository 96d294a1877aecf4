"""Recipes that state the topology that they are for, as `TOPOLOGY`."""

import runpy
import sys
from pathlib import Path

from clip_jax.errors import UsageError


def stated_topology(path: Path) -> str | None:
  """`TOPOLOGY` of a config file, or None where it states none.

  Raises:
    UsageError: the file cannot be run.
  """
  root = str(path.resolve().parent.parent)
  sys.path.insert(0, root)
  try:
    return runpy.run_path(str(path)).get('TOPOLOGY')
  except Exception as error:
    raise UsageError(f'config file {path} cannot be run: {error}') from error
  finally:
    sys.path.remove(root)


def recipes_in(folder: Path) -> list[Path]:
  """The files of a folder that state one, by name.

  Raises:
    UsageError: there is none.
  """
  paths = [path for path in sorted(folder.glob('*.py')) if _states(path)]
  if not paths:
    raise UsageError(
      f'no recipe in {folder}/ states its TOPOLOGY: run this where configs/ is.'
    )
  return paths


def _states(path: Path) -> bool:
  lines = path.read_text('utf-8').splitlines()
  return any(line.startswith('TOPOLOGY = ') for line in lines)
