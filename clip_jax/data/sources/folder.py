"""`folder:PATH`: classes, captions beside the pictures, or neither."""

import os
from collections.abc import Iterator

from clip_jax.data.images import read_bytes
from clip_jax.data.sources.base import (
  DEFAULT_CAPTIONS,
  Record,
  Source,
  local_path,
  outline_of,
  read_text,
  words,
)
from clip_jax.errors import FailureError, UsageError

IMAGE_SUFFIXES = (
  '.png', '.jpg', '.jpeg', '.webp', '.gif', '.bmp', '.tif', '.tiff', '.avif',
)  # fmt: skip


class FolderSource(Source):
  """Pictures in a folder: classes, captions beside them, or neither.

  With a `.txt` of the same stem beside any picture, each line of such a file
  is a caption. Otherwise, where all pictures are in sub-folders, the first
  sub-folder is the class: a label, and its name (with spaces for underscores)
  the caption. Otherwise they are pictures without texts. Hidden files and
  folders are skipped; the order is that of the paths. `#split` is a sub-folder.
  """

  def __init__(self, spec: str, location: str, captions: tuple[str, ...]):
    self.spec = spec
    self._root = local_path(spec, location)
    if not os.path.isdir(self._root):
      raise UsageError(f'data {spec!r}: no folder {self._root}')
    if captions != DEFAULT_CAPTIONS:
      raise UsageError(
        f'data {spec!r}: a folder has no caption columns '
        f'({", ".join(captions)}); leave captions at its default'
      )
    files = _files(self._root)
    self._paths = [x for x in files if x.lower().endswith(IMAGE_SUFFIXES)]
    if not self._paths:
      raise UsageError(
        f'data {spec!r}: no images in {self._root} '
        f'(looked for {" ".join(IMAGE_SUFFIXES)})'
      )
    self._texts: list[list[str]] | None = None
    self._labels: list[int] | None = None
    beside = set(files)
    if any(_text_file(path) in beside for path in self._paths):
      self._texts = [self._beside(path, beside) for path in self._paths]
    elif all(os.sep in path for path in self._paths):
      classes = [path.split(os.sep)[0] for path in self._paths]
      folders = sorted(set(classes))
      index = {name: i for i, name in enumerate(folders)}
      self._labels = [index[name] for name in classes]
      self.label_names = tuple(words(name) for name in folders)

  def _beside(self, path: str, beside: set[str]) -> list[str]:
    text_file = _text_file(path)
    if text_file not in beside:
      return []
    text = read_text(self.spec, os.path.join(self._root, text_file))
    return [line.strip() for line in text.splitlines() if line.strip()]

  def __len__(self) -> int:
    return len(self._paths)

  def id(self, index: int) -> str:
    return self._paths[index].replace(os.sep, '/')

  def captions(self, index: int) -> list[str]:
    if self._texts is not None:
      return self._texts[index]
    if self._labels is not None and self.label_names is not None:
      return [self.label_names[self._labels[index]]]
    return []

  def __getitem__(self, index: int) -> Record:
    record: Record = {
      'id': self.id(index),
      'image': read_bytes(os.path.join(self._root, self._paths[index])),
      'caption': self.captions(index),
    }
    if self._labels is not None:
      record['label'] = self._labels[index]
    return record

  def outline(self) -> Iterator[str]:
    for index, path in enumerate(self._paths):
      label = self._labels[index] if self._labels is not None else None
      known = self.id(index), self.captions(index), label
      yield outline_of(os.path.join(self._root, path), *known)


def _text_file(path: str) -> str:
  return os.path.splitext(path)[0] + '.txt'


def _files(root: str) -> list[str]:
  """All files below root that are not hidden, sorted, relative to it."""
  found: list[str] = []
  seen: set[str] = set()

  def refuse(error: OSError):
    raise FailureError(f'{error.filename}: {error.strerror}') from error

  for folder, folders, files in os.walk(root, followlinks=True, onerror=refuse):
    # Links may form a circle.
    real = os.path.realpath(folder)
    if real in seen:
      folders.clear()
      continue
    seen.add(real)
    folders[:] = [x for x in folders if not x.startswith('.')]
    found += [
      os.path.relpath(os.path.join(folder, x), root)
      for x in files
      if not x.startswith('.')
    ]
  return sorted(found)
