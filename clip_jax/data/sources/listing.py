"""Lists the images below a folder, which are recognised by their content."""

import collections
import dataclasses
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from clip_jax.data.image_formats import (
  HEAD_BYTES,
  PLAIN_SUFFIXES,
  format_of,
  why_unreadable,
)
from clip_jax.errors import FailureError, plural, quote_first
from clip_jax.files import open_regular

# Files with these suffixes are not opened: texts, tables and archives, of which
# there may be one for each image, and raw photographs, which begin like a TIFF.
_NO_IMAGES = (
  '.json', '.jsonl', '.csv', '.tsv', '.xml', '.yaml', '.md', '.html', '.py',
  '.npy', '.npz', '.parquet', '.tar', '.gz', '.zip',
  '.dng', '.nef', '.nrw', '.arw', '.cr2', '.cr3', '.pef', '.srw', '.3fr',
  '.iiq', '.orf', '.rw2', '.raf',
)  # fmt: skip
# Files that operating systems put into folders; they are skipped silently.
_SYSTEM_FILES = ('thumbs.db', 'ehthumbs.db', 'desktop.ini', 'icon\r')
_SYSTEM_FOLDERS = (
  '__MACOSX', '@eaDir', '$RECYCLE.BIN', 'System Volume Information',
  'lost+found',
)  # fmt: skip
_LONGEST_SUFFIX = 10  # characters; a name may have a dot without a suffix
_SHOWN = 6  # kinds of files that a notice counts one by one
_BLOCK = 256  # files that a thread looks into before it takes others


@dataclasses.dataclass
class Listing:
  """The files below a folder; paths are relative to it.

  Attributes:
    images: the images that can be read on this machine, sorted.
    captions: the .txt file of each image, or None.
    folders: the names of the folder's own sub-folders.
    left_out: the number of files of each suffix that are no readable images.
    reasons: why some of these cannot be read, and what to install.
    unused_texts: the .txt files without an image beside them.
    repeated: the links to folders that are listed already.
  """

  images: list[str]
  captions: list[str | None]
  folders: set[str]
  left_out: collections.Counter[str]
  reasons: list[str]
  unused_texts: list[str]
  repeated: list[str]

  def notices(self) -> list[str]:
    """Returns lines about what was left out."""
    lines = []
    if self.left_out:
      ranked = sorted(self.left_out.items(), key=lambda x: (-x[1], x[0]))
      kinds = ranked[:_SHOWN]
      counts = ', '.join(f'{kind} {count:,}' for kind, count in kinds)
      more = ', …' if len(self.left_out) > len(kinds) else ''
      why = f' ({"; ".join(self.reasons)})' if self.reasons else ''
      total = plural(self.left_out.total(), 'file')
      lines.append(f'left out {total}: {counts}{more}{why}')
    if count := len(self.unused_texts):
      names = quote_first(self.unused_texts, count)
      verb = 'has no image beside it'
      if count > 1:
        verb = 'have no image beside them'
      lines.append(f'{plural(count, ".txt file")} {verb} ({names})')
    if count := len(self.repeated):
      lines.append(
        f'left out {plural(count, "link")} to folders that are here already '
        f'({quote_first(self.repeated, count)})'
      )
    return lines


def list_images(root: str, only: Sequence[str] = ()) -> Listing:
  """Lists the files below a folder; decodes no image.

  A usual suffix of an image is trusted; other files are recognised by their
  first bytes. Hidden files and folders are skipped.

  Args:
    only: sub-folders, instead of the whole folder.
  Raises:
    FailureError: a folder cannot be read.
  """
  images: list[str] = []
  texts: dict[str, str] = {}  # the path without its suffix -> the path
  unknown: list[str] = []
  repeated: list[str] = []
  left_out = collections.Counter[str]()
  for path, kind in _walk(root, only):
    stem, suffix = os.path.splitext(path)
    suffix = suffix.lower()
    if kind == 'folder':
      repeated.append(path)
    elif kind:
      left_out[kind] += 1
    elif suffix in PLAIN_SUFFIXES:
      images.append(path)
    elif suffix == '.txt':
      texts[stem] = path
    elif suffix in _NO_IMAGES:
      left_out[suffix] += 1
    else:
      unknown.append(path)
  reasons: list[str] = []
  for path, image_format in zip(unknown, _formats(root, unknown), strict=True):
    reason = why_unreadable(image_format)
    if image_format and not reason:
      images.append(path)
    else:
      left_out[_kind_of(path)] += 1
      reasons += [reason] if reason and reason not in reasons else []
  images.sort()
  # a.txt, or else a.png.txt, belongs to a.png.
  keys = (os.path.splitext(x)[0] for x in images)
  captions = [
    texts.get(key) or texts.get(image)
    for key, image in zip(keys, images, strict=True)
  ]
  used = set(captions)
  return Listing(
    images=images,
    captions=captions,
    folders=_sub_folders(root),
    left_out=left_out,
    reasons=reasons,
    unused_texts=sorted(x for x in texts.values() if x not in used),
    repeated=sorted(repeated),
  )


def _walk(root: str, only: Sequence[str]) -> Iterator[tuple[str, str]]:
  """Yields the path of every file, and what it is where it is not regular.

  A folder is listed once, however many links lead to it.
  """
  waiting = [*reversed(only)] or ['']
  seen: set[tuple[int, int]] = set()
  while waiting:
    folder = waiting.pop()
    path = os.path.join(root, folder)
    try:
      status = os.stat(path)
      with os.scandir(path) as entries:
        # Links come last, so that a folder is listed under its own name.
        listed = sorted(entries, key=lambda x: (x.is_symlink(), x.name))
    except OSError as error:
      raise FailureError(f'{path}: {error.strerror}') from error
    identity = status.st_dev, status.st_ino
    if identity in seen:
      yield folder, 'folder'
      continue
    seen.add(identity)
    folders = []
    for entry in listed:
      name = os.path.join(folder, entry.name)
      if entry.name.startswith('.'):
        continue
      if entry.is_dir():
        if entry.name not in _SYSTEM_FOLDERS:
          folders.append(name)
      elif entry.is_file():
        if entry.name.lower() not in _SYSTEM_FILES:
          yield name, ''
      else:
        broken = entry.is_symlink()
        yield name, 'broken links' if broken else 'pipes or devices'
    waiting += reversed(folders)


def _sub_folders(root: str) -> set[str]:
  with os.scandir(root) as entries:
    return {
      entry.name
      for entry in entries
      if entry.is_dir()
      and not entry.name.startswith('.')
      and entry.name not in _SYSTEM_FOLDERS
    }


def _formats(root: str, paths: Sequence[str]) -> list[str]:
  """Returns the format of each file, or '' if it is no readable image."""

  def find(path: str) -> str:
    try:
      with open_regular(os.path.join(root, path)) as file:
        return format_of(file.read(HEAD_BYTES))
    except (FailureError, OSError):
      return ''

  if not paths:
    return []
  blocks = [paths[i : i + _BLOCK] for i in range(0, len(paths), _BLOCK)]
  # In threads, since a network disk takes a millisecond for each file.
  with ThreadPoolExecutor(16, thread_name_prefix='sniff') as pool:
    formats = pool.map(lambda block: [find(path) for path in block], blocks)
    return [image_format for block in formats for image_format in block]


def _kind_of(path: str) -> str:
  suffix = os.path.splitext(path)[1].lower()
  usual = 1 < len(suffix) <= _LONGEST_SUFFIX and ' ' not in suffix
  return suffix if usual else 'no suffix'
