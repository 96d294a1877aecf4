"""The queries of `clip-jax search`: texts and images, as they are typed."""

import os
from typing import TYPE_CHECKING, BinaryIO

from absl import flags

from clip_jax.commands import common_flags
from clip_jax.data.image_formats import HEAD_BYTES, PLAIN_SUFFIXES, format_of
from clip_jax.errors import FailureError, UsageError
from clip_jax.files import is_url, open_regular, typed_path

if TYPE_CHECKING:
  from clip_jax.inference.search import Query

# A word that ends so is a path, even where there is no such file.
_SUFFIXES = (
  *PLAIN_SUFFIXES, '.heic', '.heif', '.avif', '.jp2', '.j2k', '.jxl', '.svg',
  '.ico', '.psd', '.ppm', '.pgm', '.dng', '.cr2', '.nef', '.arw',
)  # fmt: skip


def define_flags(values: flags.FlagValues) -> None:
  """Defines --text, --image and --queries."""
  flags.DEFINE_multi_string(
    'text', [], 'a text, whatever it looks like', flag_values=values
  )
  common_flags.define_path(
    values, 'image', "an image's path, whatever it ends in", multiple=True
  )
  common_flags.define_path(
    values, 'queries', 'a UTF-8 file with one text a line'
  )


def parse_queries(values: flags.FlagValues, words: list[str]) -> 'list[Query]':
  """Returns all queries: words, then --text, --image, and --queries.

  Raises:
    UsageError: there is none, one is empty, or an image is not there.
  """
  from clip_jax.inference.search import Query

  queries = []
  files = [values.queries] if values.queries else []
  for word in words:
    if word == '-':
      files.append('-')
    else:
      queries.append(_parse_word(word))
  queries += [Query(text, False) for text in values.text]
  queries += [Query(_check_image_path(path), True) for path in values.image]
  for file in files:
    path = '/dev/stdin' if file == '-' else file
    lines = common_flags.lines_of('queries', path)
    queries += [Query(text, False) for text in lines]
  if not queries:
    raise UsageError(
      'nothing to search for: give a text or an image after the flags.'
    )
  if any(not query.value.strip() for query in queries):
    raise UsageError('a query is empty: give a text or an image.')
  return queries


def _parse_word(word: str) -> 'Query':
  """Returns an image where the word names a file, whatever it is called.

  The name of a folder is a text, as `cat` is where the images of cats lie in
  a folder of this name; so is what only looks a little like a path.

  Raises:
    UsageError: it names a file that is no image, or looks like the path of an
      image that is not there.
  """
  from clip_jax.inference.search import Query

  words = f'to search for the words, use --text={word!r}.'
  if not word.strip():
    return Query(word, False)  # which is refused with the others
  if is_url(word):
    raise UsageError(f'{word} is a URL: save the image and name its file.')
  path = os.path.expanduser(word)  # a text may well begin with a tilde
  if os.path.lexists(path) and not os.path.isdir(path):
    with _open_image('', path, f'; {words}') as file:
      head = file.read(HEAD_BYTES)
    suffix = os.path.splitext(path)[1].lower()
    if not format_of(head) and suffix not in _SUFFIXES:
      raise UsageError(f'{path} is a file, and not of an image: {words}')
    return Query(path, True)
  if _looks_like_a_path(path):
    what = ', but a folder' if os.path.isdir(path) else ''
    raise UsageError(f'no image {word}{what}: {words}')
  return Query(word, False)


def _check_image_path(path: str) -> str:
  """Returns the path of --image, whatever it ends in."""
  typed = os.fspath(typed_path(path))
  if not os.path.lexists(typed):
    raise UsageError(f'--image: no image {path}.')
  _open_image('--image: ', typed, '.').close()
  return typed


def _open_image(before: str, path: str, after: str) -> BinaryIO:
  """Opens a file that should be an image.

  Args:
    before, after: what the message of an error begins and ends with.
  Raises:
    UsageError: it is no regular file, or cannot be read.
  """
  try:
    return open_regular(path)
  except FailureError as error:
    raise UsageError(f'{before}{str(error).rstrip(".")}{after}') from error


def _looks_like_a_path(path: str) -> bool:
  """Returns whether a word is written as a path, file or no file."""
  folder, name = os.path.split(path)
  return (
    os.path.splitext(name)[1].lower() in _SUFFIXES
    or path.startswith(('/', './', '../'))
    or (bool(folder) and os.path.isdir(folder))
  )
