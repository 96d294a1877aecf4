"""Reads `folder:PATH`: classes, captions beside the images, or neither."""

import collections
import os
import re
from collections.abc import Sequence

from clip_jax.data.sources import Spec, not_a_data_set
from clip_jax.data.sources.base import DEFAULT_CAPTIONS
from clip_jax.data.sources.columns import Captions, captions_of, words
from clip_jax.data.sources.image_files import FileSource, read_text
from clip_jax.data.sources.listing import Listing, list_images
from clip_jax.errors import UsageError, plural, quote_first
from clip_jax.files import expand_path

# The values of `captions` for a folder; `caption` is .txt files or classes.
CAPTIONS = (*DEFAULT_CAPTIONS, 'filename', 'path')
# Folders of these names are splits of a data set, and not classes.
_SPLIT = re.compile(
  r'(train(ing|val)?|val(id|idation)?|test(ing)?|dev|eval)'
  r'([-_ ]?(set|data|images|split|\d{4}))?',
  re.IGNORECASE,
)


class FolderSource(FileSource):
  """Images in a folder: classes, captions beside them, or neither.

  With a `.txt` of the same stem beside any image, each line of such a file is
  a caption. Otherwise, where all images are in sub-folders, the first
  sub-folder is the class: a label, and its name (with spaces for underscores)
  the caption. Otherwise they are images without texts. Images are recognised
  by their content and sorted by path; hidden files and folders are skipped.
  `#split` is a sub-folder, `#one+two` are two of them.
  """

  def __init__(self, spec: Spec, captions: tuple[str, ...]):
    """Lists the folder and reads the captions, but no image.

    Args:
      captions: some of `CAPTIONS`: 'caption' is the text that is described
        above, 'filename' the words of the image's name, 'path' the words of its
        sub-folders' names.
    Raises:
      UsageError: there is no such folder, or no image in it; it holds splits
        and the SPEC names none; `captions` has another name; or a caption is
        not UTF-8.
    """
    self.spec = spec.text
    for name in captions:
      if name not in CAPTIONS:
        raise spec.error(
          f'a folder has no caption columns ({name}); leave captions at its '
          'default, or take filename or path'
        )
    self._root, splits = _root_and_splits(spec)
    listing = list_images(self._root, splits)
    self._paths = listing.images
    if not self._paths:
      left_out = ''.join(f' ({x})' for x in listing.notices())
      raise spec.error(f'no images in {self._root}{left_out}')
    if not splits:
      _refuse_splits(spec, self._root, self._paths)
    self._class_depth = 1 if splits else 0
    self._columns = captions
    self._texts: list[list[str]] | None = None
    self._labels: list[int] | None = None
    notices = listing.notices()
    if 'caption' in captions and any(listing.captions):
      self._texts = _read_captions(spec, self._root, listing.captions)
      notices += self._describe_captions(listing)
    else:
      notices += self._label(listing)
    self.notices = tuple(f'data {spec.text!r}: {line}' for line in notices)

  def _describe_captions(self, listing: Listing) -> list[str]:
    """Returns notices about images without captions, and sets the remedy."""
    count = len(self._paths)
    without = [i for i, path in enumerate(listing.captions) if path is None]
    captioned = count - len(without)
    if without and captioned < len(without):
      names = (path for path in listing.captions if path is not None)
      self.remedy = (
        f'captions (.txt files) are beside {captioned:,} of '
        f'{plural(count, "image")} only ({quote_first(names, captioned)}): '
        "remove them to have sub-folders' names instead, or take captions=path"
      )
      return [self.remedy]
    if without:
      names = (self._paths[i] for i in without)
      self.remedy = (
        f'{len(without):,} of {plural(count, "image")} have no .txt file of '
        f'captions ({quote_first(names, len(without))})'
      )
      return [self.remedy]
    self.remedy = (
      'with .txt files of captions beside images, sub-folders are no labels'
    )
    empty = [i for i, texts in enumerate(self._texts or ()) if not texts]
    if not empty:
      return []
    names = (path for i in empty if (path := listing.captions[i]))
    return [
      f'{plural(len(empty), ".txt file")} of captions have no text '
      f'({quote_first(names, len(empty))})'
    ]

  def _label(self, listing: Listing) -> list[str]:
    """Sets the labels where all images are in sub-folders; returns notices."""
    depth = self._class_depth
    parts = [path.split(os.sep) for path in self._paths]
    stray = [
      path
      for path, names in zip(self._paths, parts, strict=True)
      if len(names) <= depth + 1
    ]
    if len(stray) == len(parts):
      self.remedy = (
        'put the images of each class into a folder of its own, or captions '
        'beside them (a.txt beside a.png), or take captions=filename'
      )
      return []
    if stray:
      self.remedy = (
        f'the sub-folders are no classes, as {plural(len(stray), "image")} '
        f'beside them {"is" if len(stray) == 1 else "are"} in none '
        f'({quote_first(stray, len(stray))}): move or remove what is stray, or '
        'take captions=path'
      )
      return [] if 'path' in self._columns else [self.remedy]
    classes = [names[depth] for names in parts]
    folders = sorted(set(classes))
    index = {name: i for i, name in enumerate(folders)}
    self._labels = [index[name] for name in classes]
    self.label_names = tuple(_readable(words(name)) for name in folders)
    return self._class_notices(listing, parts, folders)

  def _class_notices(
    self, listing: Listing, parts: list[list[str]], folders: list[str]
  ) -> list[str]:
    """Returns notices about sub-folders that may not be meant as classes."""
    depth = self._class_depth
    notices = []
    deep = [names for names in parts if len(names) > depth + 2]
    if len(folders) == 1:
      below = f'{os.path.join(self._root, *parts[0][: depth + 1])}'
      within = f'; its own sub-folders are those of folder:{below}'
      notices.append(
        f'all images are in the sub-folder {folders[0]!r}, the only class'
        + (within if deep else '')
      )
    elif deep and 'path' not in self._columns:
      notices.append(
        f'{plural(len(deep), "image")} in deeper folders, such as '
        f'{os.sep.join(deep[0])!r}: the first sub-folder is the class '
        f'({deep[0][depth]!r}); captions=path has the words of all'
      )
    empty = sorted(listing.folders - set(folders) - set(listing.repeated))
    if empty and depth == 0:
      notices.append(
        f'{plural(len(empty), "sub-folder")} without images '
        f'{"is no class" if len(empty) == 1 else "are no classes"} '
        f'({quote_first(empty, len(empty))})'
      )
    return notices

  def id(self, index: int) -> str:
    return _readable(self._paths[index].replace(os.sep, '/'))

  def captions(self, index: int) -> list[str]:
    return self.numbered_captions(index)['caption']

  def numbered_captions(self, index: int) -> Captions:
    texts: list[tuple[int, str]] = []
    for number, column in enumerate(self._columns):
      if column == 'caption':
        texts += ((number, text) for text in self._own_captions(index))
      else:
        folder, name = os.path.split(self._paths[index])
        if column == 'filename':
          text = os.path.splitext(name)[0]
        else:
          text = os.sep.join(folder.split(os.sep)[self._class_depth :])
        texts += ((number, x) for x in [_words_of(text)] if x)
    return captions_of(texts, len(self._columns))

  def _own_captions(self, index: int) -> list[str]:
    if self._texts is not None:
      return self._texts[index]
    if self._labels is not None and self.label_names is not None:
      return [self.label_names[self._labels[index]]]
    return []

  def file(self, index: int) -> str:
    return os.path.join(self._root, self._paths[index])


def _root_and_splits(spec: Spec) -> tuple[str, tuple[str, ...]]:
  """Returns the folder, and its sub-folders that '#one+two' names."""
  root = spec.path()
  if os.path.isdir(root):
    return root, ()
  whole = expand_path(spec.location)
  if not os.path.isdir(whole):
    if os.path.isfile(root):
      raise not_a_data_set(spec.text, root)
    raise spec.error(f'no folder {root}')
  splits = tuple(spec.split.split('+'))
  folders = sorted(
    entry.name
    for entry in os.scandir(whole)
    if entry.is_dir() and not entry.name.startswith('.')
  )
  for name in splits:
    if name not in folders:
      known = ', '.join(folders) or 'no sub-folders'
      path = os.path.join(whole, name)
      raise spec.error(f'no folder {path}; {whole} has {known}')
  return whole, splits


def _read_captions(
  spec: Spec, root: str, paths: Sequence[str | None]
) -> list[list[str]]:
  """Returns the captions of each image: the lines of its text file, if any.

  Raises:
    UsageError: files cannot be read, or are not UTF-8; the message names one,
      and says how many more there are.
  """
  texts: list[list[str]] = []
  errors: list[UsageError] = []
  unreadable: list[str] = []
  for path in paths:
    try:
      text = read_text(spec, os.path.join(root, path)) if path else ''
    except UsageError as error:
      errors.append(error)
      unreadable.append(path or '')
      continue
    # A disk that lost data leaves NULs, which no text has.
    lines = text.replace('\0', ' ').splitlines()
    texts.append([line.strip() for line in lines if line.strip()])
  if len(errors) > 1:
    more = unreadable[1:]
    raise UsageError(
      f'{errors[0]}; so for {plural(len(more), "more file")} '
      f'({quote_first(more, len(more))})'
    )
  if errors:
    raise errors[0]
  return texts


def _refuse_splits(spec: Spec, root: str, paths: list[str]) -> None:
  """Refuses a folder of train/ and test/, which would become two classes.

  A model would learn to tell "train" from "test", on its test images too.
  """
  images = collections.defaultdict[str, list[str]](list)
  for path in paths:
    top, slash, below = path.partition(os.sep)
    if slash:
      images[top].append(below)
  splits = [name for name in images if _SPLIT.fullmatch(name)]
  alone = (
    len(splits) == 1
    and len(images) == 1
    and len(paths) == len(images[splits[0]])
  )
  nested = alone and all(os.sep in path for path in images[splits[0]])
  if len(splits) > 1 or nested:
    whole = spec.text.partition('#')[0]
    first = next((x for x in splits if x.lower().startswith('tr')), splits[0])
    together = f', or all: {whole}#{"+".join(splits)}'
    raise spec.error(
      f'{root} has the splits {", ".join(splits)}, which are no classes: name '
      f'one, as in {whole}#{first}{together if len(splits) > 1 else ""}'
    )


def _readable(name: str) -> str:
  """Returns a file's name as text; bytes that are not UTF-8 are escaped."""
  return os.fsencode(name).decode('utf-8', 'backslashreplace')


def _words_of(name: str) -> str:
  """Returns the words of a file's or a folder's name."""
  return ' '.join(re.split(r'[\s_./-]+', _readable(name))).strip()
