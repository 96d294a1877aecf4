"""--config=FILE.py[:ARG] and --config.KEY=VALUE, with errors that help."""

import difflib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from clip_jax.errors import UsageError
from clip_jax.files import expand_path


def define_config(values: flags.FlagValues) -> None:
  """Adds the flag --config, and with it all of --config.KEY."""
  config_flags.DEFINE_config_file(
    'config',
    None,
    'a file with get_config(), and an argument for it: FILE.py[:ARG]',
    lock_config=True,
    flag_values=values,
  )


def parse(values: flags.FlagValues, argv: list[str]) -> list[str]:
  """Parses flags as `values(argv)` does, with one kind of error.

  Returns:
    The arguments that are not flags, the program's name first.
  Raises:
    UsageError: the file cannot be used, or a key or a value is wrong.
  """
  argv = _expand_home(argv)
  config = _load(argv)
  if config is not None:
    _check_keys(config, argv)
  try:
    return _parse(values, argv)
  except flags.UnrecognizedFlagError:
    raise
  except (TypeError, ValueError, flags.IllegalFlagValueError) as error:
    reason = ' '.join(str(error).split())
    raise UsageError(
      f'{reason} (see configs/base.py for the fields)'
    ) from error


def _expand_home(argv: list[str]) -> list[str]:
  """Expands the `~` of --config=~/FILE.py."""
  return [
    f'{flag[1]}{expand_path(flag[2])}'
    if (flag := re.fullmatch(r'(--?config=)(.+)', word))
    else word
    for word in argv
  ]


def _load(argv: list[str]) -> ConfigDict | None:
  """Returns the config of --config as its file makes it, without overrides."""
  flag = re.search(r'(?:^|\0)--?config[=\0]([^\0]+)', '\0'.join(argv))
  if flag is None:
    return None
  path = Path(flag[1].partition(':')[0])
  if not path.is_file():
    raise UsageError(
      f'no config file {path}: expected one such as configs/emoji.py.'
    )
  # Recipes say `from configs import base`: theirs, or this checkout's.
  sys.path.insert(0, str(path.resolve().parent.parent))
  sys.path.append(str(Path(__file__).parents[2]))
  values = flags.FlagValues()
  define_config(values)
  try:
    _parse(values, [argv[0], f'--config={flag[1]}'])
    return values.config
  except Exception as error:
    # config_flags puts a whole traceback into its message.
    lines = str(error.__cause__ or error).strip().splitlines()
    cause = lines[-1].strip().removeprefix('ValueError: ') if lines else error
    raise UsageError(f'config file {path} cannot be run: {cause}') from error


def stated_fields(values: flags.FlagValues) -> frozenset[str]:
  """Returns the dotted names of the fields that the command line gives."""
  prefix = 'config.'
  return frozenset(
    name.removeprefix(prefix) for name in values if name.startswith(prefix)
  )


def config_path(values: flags.FlagValues) -> Path:
  """Returns the file of --config, which must be given, without its argument."""
  flag: Any = values['config']
  return Path(flag.config_filename.partition(':')[0])


def read_config(path: Path | str) -> ConfigDict:
  """Returns the config that FILE.py[:ARG] makes.

  Raises:
    UsageError: there is no such file, or it cannot be run.
  """
  config = _load(['clip-jax', f'--config={path}'])
  assert config is not None  # the flag is there
  return config


def _parse(values: flags.FlagValues, argv: list[str]) -> list[str]:
  """Parses with `argv` as sys.argv, where config_flags looks."""
  before, sys.argv = sys.argv, argv
  try:
    return values(argv)
  finally:
    sys.argv = before


def _check_keys(config: ConfigDict, argv: list[str]) -> None:
  """Refuses an override of an unknown field, and names the nearest one."""
  known = list(_fields(config))
  for word in argv:
    match = re.match(r'--?config\.([^=]+)', word)
    if match and match[1] not in known:
      near = difflib.get_close_matches(match[1], known, n=1, cutoff=0.0)
      raise UsageError(
        f'the config has no field {match[1]!r}; the nearest is {near[0]!r}.'
      )


def _fields(config: ConfigDict, prefix: str = '') -> Iterator[str]:
  for key in config:
    value = config[key]
    if isinstance(value, ConfigDict):
      yield from _fields(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}'
