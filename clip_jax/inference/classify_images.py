"""Labels images of files, folders and data sets, some hundreds at a time."""

import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.sources import Source
from clip_jax.errors import UsageError, one_line
from clip_jax.inference.classifier import Templates
from clip_jax.inference.inputs import refuse_url
from clip_jax.inference.zero_shot import ZeroShotModel

_CHUNK = 512  # images that are encoded in one call


class ImageSet(NamedTuple):
  """The images of a folder or of a data set.

  Attributes:
    source: has the images.
    folder: the names of images are paths in it; '': they are the ids.
  """

  source: Source
  folder: str


class NamedImage(NamedTuple):
  """An image to classify: its path, encoded bytes, or why it has neither."""

  name: str
  content: str | bytes | CorruptImageError | UsageError


class LabelledImage(NamedTuple):
  """The name of an image, and the probability of each label."""

  name: str
  probabilities: dict[str, float]


def count_images(items: Iterable[str | ImageSet]) -> int:
  """Returns how many images `read_images` yields, readable or not."""
  return sum(1 if isinstance(x, str) else len(x.source) for x in items)


def read_images(items: Iterable[str | ImageSet]) -> Iterator[NamedImage]:
  """Yields all images in order; those of sets are read from their source.

  Args:
    items: paths of images, and sets of them.
  """
  for item in items:
    if isinstance(item, str):
      try:
        refuse_url(item)
        yield NamedImage(item, item)
      except UsageError as error:
        yield NamedImage(item, error)
      continue
    for index in range(len(item.source)):
      name = os.path.join(item.folder, item.source.id(index))
      try:
        yield NamedImage(name, item.source[index]['image'])
      except CorruptImageError as error:
        yield NamedImage(name, error)


def classify_images(
  model: ZeroShotModel,
  images: Iterable[NamedImage],
  labels: Sequence[str],
  templates: Templates,
  *,
  independent: bool,
  on_error: Callable[[str], object],
) -> Iterator[LabelledImage]:
  """Yields the labels of the readable images, in their order.

  Args:
    model: encodes images and labels.
    images: of any number; a few hundred are in memory.
    labels: different names.
    templates, independent: see `ZeroShotModel.classify`.
    on_error: is called, in the order of the images, with a line that says
      which cannot be read and why.
  """
  stream = iter(images)
  while chunk := list(itertools.islice(stream, _CHUNK)):
    errors: dict[int, Exception] = {
      i: image.content
      for i, image in enumerate(chunk)
      if isinstance(image.content, Exception)
    }
    readable = [i for i in range(len(chunk)) if i not in errors]
    unread: dict[int, Exception] = {}
    rows = model.classify(
      [chunk[i].content for i in readable],
      labels,
      templates,
      independent=independent,
      on_error=unread.__setitem__,
    )
    errors.update({readable[i]: error for i, error in unread.items()})
    probabilities = iter(rows.tolist())
    for i, image in enumerate(chunk):
      if i in errors:
        on_error(_describe(image.name, errors[i]))
      else:
        values = zip(labels, next(probabilities), strict=True)
        yield LabelledImage(image.name, dict(values))


def _describe(name: str, error: Exception) -> str:
  """Returns a line that names an image, and says what is wrong with it."""
  name = one_line(name)
  # An image that came as bytes has no name: only its position is known.
  reason = re.sub(r'^image \d+: ', '', str(error))
  return reason if reason.startswith(name) else f'{name}: {reason}'
