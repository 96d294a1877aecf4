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
  """`values(argv)`, with config_flags' many exceptions made one.

  Returns:
    The arguments that are not flags, the program's name first.
  Raises:
    UsageError: the file cannot be used, or a key or a value is wrong.
  """
  _check_file(argv)
  try:
    return values(argv)
  except flags.UnrecognizedFlagError:
    raise
  except (AttributeError, KeyError) as error:
    raise UsageError(_unknown_key(values, argv)) from error
  except (TypeError, ValueError, flags.IllegalFlagValueError) as error:
    said = ' '.join(str(error).split())
    raise UsageError(f'{said} (see configs/base.py for the fields)') from error


def _check_file(argv: list[str]) -> None:
  for word in argv:
    if match := re.match(r'--?config=([^:]*)', word):
      path = Path(match.group(1))
      if not path.is_file():
        raise UsageError(
          f'no config file {path}: expected one such as configs/emoji.py.'
        )
      # Recipes say `from configs import base`.
      sys.path.insert(0, str(path.resolve().parent.parent))


def _unknown_key(values: flags.FlagValues, argv: list[str]) -> str:
  known = dict(_fields(values['config'].value or ConfigDict()))
  for word in argv:
    match = re.match(r'--?config\.([^=]+)', word)
    if match and match.group(1) not in known:
      key = match.group(1)
      near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
      return f'the config has no field {key!r}; the nearest is {near[0]!r}.'
  return 'the config has no such field; see configs/base.py.'


def _fields(config: ConfigDict, prefix: str = '') -> Iterator[tuple[str, Any]]:
  for key in config:
    value = config[key]
    if isinstance(value, ConfigDict):
      yield from _fields(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value
