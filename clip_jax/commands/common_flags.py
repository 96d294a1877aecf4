"""Defines the flags that more than one verb has, and reads their values."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from clip_jax import files
from clip_jax.data.text_lines import TextLines
from clip_jax.errors import UsageError
from clip_jax.files import typed_path

if TYPE_CHECKING:
  from clip_jax.data.prepare.engine import Engine


class PathParser(flags.ArgumentParser):
  """Parses a path or URL that a person typed; see `files.expand_path`.

  A shell expands the `~` of `--out ~/x`, and not that of `--out=~/x`.
  """

  syntactic_help = 'a path'

  def parse(self, argument: str) -> str:
    return files.expand_path(argument) if argument else argument


def define_path(
  values: flags.FlagValues, name: str, what: str, *, multiple: bool = False
) -> None:
  """Defines a flag that names a file or folder.

  Args:
    name: of the flag.
    what: its help.
    multiple: the flag may be given more than once; its value is a list.
  """
  parser, serializer = PathParser(), flags.ArgumentSerializer()
  if multiple:
    flags.DEFINE_multi(parser, serializer, name, [], what, values)
  else:
    flags.DEFINE(parser, name, None, what, values, serializer)


def define_templates(
  values: flags.FlagValues, default: tuple[str, ...] | None = ('{}',)
) -> None:
  """Defines --templates: prompts around names; see `templates_of`."""
  flags.DEFINE_multi_string(
    'templates',
    default,
    'a prompt with {} for the name, or @FILE with one a line; the flag '
    'may be repeated, and all are averaged',
    flag_values=values,
  )


def templates_of(values: flags.FlagValues) -> list[str]:
  """Returns the prompts of --templates, those of its files included.

  Raises:
    UsageError: one has no slot for the name, or more than one.
  """
  from clip_jax.inference.classifier import check_templates

  templates = []
  for value in values.templates:
    if value.startswith('@'):
      templates += lines_of('templates', value[1:])
    elif (slots := value.count('{}')) > 1:
      raise UsageError(
        f'--templates={value!r} is one prompt with {slots} slots. Give more '
        "prompts by more flags, --templates='{}' --templates='a drawing of "
        "{}.', or by --templates=@FILE, one a line, where one may have more "
        'slots.'
      )
    else:
      templates.append(value)
  check_templates(templates)
  return templates


def define_captions(values: flags.FlagValues) -> None:
  """Defines --captions: which columns of a data set are texts."""
  flags.DEFINE_list(
    'captions',
    ['caption'],
    'columns or features that hold captions; of a folder also filename, path',
    flag_values=values,
  )


def define_encoding(values: flags.FlagValues) -> None:
  """Defines how a data set is encoded: batch size, dtype, corrupt images."""
  flags.DEFINE_integer(
    'batch_size', 64, 'rows on the device at once', flag_values=values
  )
  flags.DEFINE_string(
    'dtype',
    'float32',
    'of the arithmetic: float32 or bfloat16',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'max_corrupt', 100, 'unreadable images to leave out', flag_values=values
  )
  define_images(values)


def define_images(values: flags.FlagValues) -> None:
  """Defines --max_megapixels: which images are too large to be read."""
  flags.DEFINE_float(
    'max_megapixels',
    None,
    'leave out larger images; default: 89, or 224 for JPEGs',
    flag_values=values,
  )


def limit_images(values: flags.FlagValues) -> None:
  """Sets the limit of --max_megapixels, for the verbs that have this flag.

  Raises:
    UsageError: it is not above 0.
  """
  if 'max_megapixels' in values and values.max_megapixels is not None:
    from clip_jax.data.decoding import limit_megapixels

    limit_megapixels(values.max_megapixels)


def define_engine(values: flags.FlagValues, workers: int = 0) -> None:
  """Defines --engine, --workers and --beam_options; see `engine_of`.

  Args:
    workers: the default.
  """
  text = flags.DEFINE_string
  text('engine', 'local', 'local, beam or ray', flag_values=values)
  flags.DEFINE_integer(
    'workers', workers, 'tasks at a time; 0 is one a core', flag_values=values
  )
  text(
    'beam_options',
    None,
    "of Beam: '--runner=FlinkRunner …' for other machines",
    flag_values=values,
  )


def engine_of(values: flags.FlagValues) -> 'Engine':
  """Returns what runs the tasks, as the flags of `define_engine` say.

  Raises:
    UsageError: one is out of its range, or of another engine.
  """
  from clip_jax.data.prepare.engine import Engine

  text = values.beam_options or ''
  try:
    options = tuple(shlex.split(text))
  except ValueError as error:
    raise UsageError(f'--beam_options={text}: {error}.') from error
  return Engine(values.engine, values.workers, options)


def define_json(values: flags.FlagValues) -> None:
  """Defines --json: one JSON document on stdout, and nothing else there."""
  flags.DEFINE_bool(
    'json', False, 'print one JSON document', flag_values=values
  )


def words_of(flag: str, value: str) -> list[str]:
  """Returns the items of a flag: 'a,b,c', or '@FILE' with one a line.

  Raises:
    UsageError: the file is missing or is not UTF-8.
  """
  if value.startswith('@'):
    return list(lines_of(flag, value[1:]))
  return [word.strip() for word in value.split(',')] if value.strip() else []


def lines_of(flag: str, path: str) -> TextLines:
  """Returns the lines of a UTF-8 file that are not blank.

  Raises:
    UsageError: it is missing, or a line of it is not UTF-8.
  """
  try:
    return TextLines(typed_path(path))
  except UsageError as error:
    raise UsageError(f'--{flag}: {error}') from error


def require(value: str | None, flag: str, example: str) -> str:
  """Returns a flag's value.

  Raises:
    UsageError: it was not given.
  """
  if not value:
    raise UsageError(f'no --{flag}: {example}.')
  return value


def out_folder(values: flags.FlagValues, what: str) -> str:
  """Returns the folder of --out, local or a URL, which need not be there yet.

  Args:
    what: it is to be, for the error: 'name the folder of the shards'.
  Raises:
    UsageError: it is not given, or is a file.
  """
  from clip_jax.data import storage

  out = storage.local_or_url(require(values.out, 'out', what))
  if not storage.is_remote(out) and os.path.isfile(out):
    raise UsageError(f'--out: {out} is a file: name a folder.')
  return out


def folder_of(name: str | None, flag: str) -> Path | None:
  """Returns the folder that a flag names, which need not be there yet.

  Raises:
    UsageError: it is a file.
  """
  if not name:
    return None
  folder = typed_path(name)
  if folder.exists() and not folder.is_dir():
    raise UsageError(f'--{flag}: {folder} is a file: name a folder.')
  return folder


def file_of(name: str | None, flag: str, suffix: str = '') -> Path | None:
  """Returns the file that a flag names, to be written.

  Args:
    name: the value of the flag, or None.
    flag: its name, for the errors.
    suffix: what is written ('.png'), where only one format is.
  Raises:
    UsageError: it is a folder or in none, or ends in another suffix.
  """
  if not name:
    return None
  path = typed_path(name)
  if path.suffix.lower() != suffix and suffix:
    raise UsageError(f'--{flag}={name}: name a file that ends in {suffix}.')
  if path.is_dir():
    raise UsageError(f'--{flag}: {path} is a folder: name a file.')
  if not path.parent.is_dir():
    raise UsageError(f'--{flag}: {path}: there is no folder {path.parent}.')
  return path


def no_words(verb: str, words: list[str]) -> None:
  """Refuses arguments that are not flags.

  Raises:
    UsageError: there are some.
  """
  if words:
    raise UsageError(f'{verb} takes flags only, not {words[0]!r}.')
