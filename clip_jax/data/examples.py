"""Makes training examples of records: decodes, augments, and batches them."""

import collections
import dataclasses
import functools
import itertools
import threading
import zlib
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int32, UInt8
from PIL import Image

from clip_jax.data.augment import Augmentation, augment
from clip_jax.data.decoding import CorruptImageError, check_corrupt
from clip_jax.data.images import Patches, as_input, decode_rgb
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.data.sources import Source
from clip_jax.errors import FailureError, check_choice, plural

if TYPE_CHECKING:
  from clip_jax.data.captions import CaptionRule
  from clip_jax.data.fast_jpeg import ScaledImage
  from clip_jax.data.views import Views

# A run fails after so many records in a row without a caption that passes.
MOST_FILTERED = 10_000
# Decoded images kept in memory stay below this; the others are read again.
CACHE_BYTES = 2**30

# The values of `data.decode`; see `decoder_of`.
DECODE = ('fast', 'exact')

Decode = Callable[[bytes], 'Image.Image | ScaledImage']
Tokenize = Callable[[Sequence[str]], Int32[np.ndarray, 'N T']]


def decoder_of(
  decode: str, preprocessing: Preprocessing, augmentation: Augmentation
) -> Decode:
  """Returns what makes an image of encoded bytes; it pickles.

  Args:
    decode: 'fast' decodes JPEGs no larger than the crops need, and has the
      crops resized by a faster library (`fast_jpeg`), but not with padding, nor
      with the filters nearest, box and hamming; 'exact' has all pixels from
      Pillow.
  Raises:
    UsageError: it is neither.
  """
  check_choice('data.decode', decode, DECODE)
  if decode == 'fast' and not augmentation.padding:
    from clip_jax.data.fast_jpeg import FILTERS, decode_scaled

    if preprocessing.interpolation in FILTERS:
      return functools.partial(
        decode_scaled,
        preprocessing=preprocessing,
        least_area=augmentation.crop_scale[0],
      )
  return functools.partial(decode_rgb, preprocessing=preprocessing)


class CaptionChoice(NamedTuple):
  """The captions of a record, of which one is drawn each time.

  Attributes:
    texts: none where no caption passes the run's filter.
    probabilities: of each, which sum to 1; None: all are as likely.
  """

  texts: list[str]
  probabilities: list[float] | None = None

  def draw(self, rng: np.random.Generator) -> str:
    """Draws a caption."""
    if self.probabilities is not None:
      ends = np.cumsum(self.probabilities)
      position = np.searchsorted(ends, rng.random() * ends[-1], side='right')
      return self.texts[min(int(position), len(self.texts) - 1)]
    count = len(self.texts)
    return self.texts[rng.integers(count) if count > 1 else 0]


class CaptionedImage(NamedTuple):
  """A record that was decoded, and what came before it.

  Attributes:
    image: in RGB and upright.
    captions: those that pass the rule.
    key: equal for records whose images have the same bytes.
    index: of the record, among those of all data sets.
    id: of the record.
    corrupt: (id, reason) of each corrupt record before it.
    filtered: the number of records before it of which no caption passes.
    max_patches: that its step reads of an image; 0: images are squares.
  """

  image: 'Image.Image | ScaledImage'
  captions: CaptionChoice
  key: int
  index: int
  id: str
  corrupt: tuple[tuple[str, str], ...] = ()
  filtered: int = 0
  max_patches: int = 0


class ImageCache:
  """Keeps decoded records in memory, up to CACHE_BYTES; pickles as empty."""

  def __init__(self):
    self._records: dict[int, CaptionedImage] = {}
    self._bytes = 0
    self._lock = threading.Lock()

  def get(self, index: int) -> CaptionedImage | None:
    """Returns a record that is kept, by its index among all data sets."""
    return self._records.get(index)

  def add(self, index: int, read: CaptionedImage) -> None:
    """Keeps a record, if there is room."""
    size = _memory_of(read.image)
    with self._lock:
      if self._bytes + size <= CACHE_BYTES:
        self._bytes += size
        self._records[index] = read

  def __reduce__(self):
    return ImageCache, ()  # a worker process fills its own


class Reader:
  """Decodes the records of a source; the next one replaces a corrupt one.

  So it does for one of which no caption passes the rule, which is no damage.
  """

  def __init__(
    self,
    source: Source,
    decode: Decode,
    max_corrupt_records: int,
    cache: ImageCache | None,
    rule: 'CaptionRule | None' = None,
    first: int = 0,
  ):
    self._source = source
    self._first = first  # the index of its first record among all data sets
    self._decode = decode
    self._limit = max_corrupt_records
    self._cache = cache
    self._rule = rule

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> CaptionedImage:
    if self._cache is None:
      return self._next_readable(index)
    read = self._cache.get(self._first + index)
    if read is None:
      read = self._next_readable(index)
      self._cache.add(self._first + index, read)
    return read

  def _next_readable(self, start: int) -> CaptionedImage:
    corrupt: dict[str, str] = {}
    filtered = 0
    for offset in range(len(self)):
      index = (start + offset) % len(self)
      try:
        read = self._read(index)
      except CorruptImageError as error:
        corrupt[self._source.id(index)] = str(error)
        check_corrupt(corrupt, self._limit)
      else:
        if read is not None:
          return read._replace(
            corrupt=tuple(corrupt.items()), filtered=filtered
          )
        filtered += 1
        if filtered >= MOST_FILTERED:
          break
    if filtered:
      passing = ' that passes data.filter' if self._rule else ''
      raise FailureError(
        f'data {self._source.spec!r}: {plural(filtered, "record")} in a row '
        f'without a caption{passing}, from {self._source.id(start)} on.'
      )
    key, reason = next(iter(corrupt.items()))
    raise FailureError(
      f'data {self._source.spec!r}: no readable record; {key}: {reason}'
    )

  def _read(self, index: int) -> CaptionedImage | None:
    """Returns a record, or None where no caption passes the rule."""
    record = self._source[index]
    if self._rule is None:
      captions = CaptionChoice(record['caption'])
    else:
      captions = CaptionChoice(*self._rule.choose(record))
    if not captions.texts:
      return None
    return CaptionedImage(
      self._decode(record['image']),
      captions,
      _key(record['image']),
      self._first + index,
      record['id'],
    )


def _memory_of(image: 'Image.Image | ScaledImage') -> int:
  """Returns the bytes that an image takes in memory."""
  if isinstance(image, Image.Image):
    return 4 * image.width * image.height  # Pillow pads RGB.
  return image.pixels.nbytes


class DrawnView(NamedTuple):
  """The record, view and caption from which an example of a batch was made.

  Attributes:
    index: of the record, among those with captions of all data sets.
    id: of the record.
    view: its number.
    caption: the one that was drawn.
  """

  index: int
  id: str
  view: int
  caption: str


# The views of a batch -> more arrays of it, with a row for each.
Teachers = Callable[[Sequence[DrawnView]], dict[str, np.ndarray]]


class Example(NamedTuple):
  """An example of a batch: an image as the model reads it, and its origin.

  Attributes:
    image: the view, as a model reads it.
    drawn: the record, the view and the caption.
    key, corrupt, filtered: as in `CaptionedImage`.
  """

  image: UInt8[np.ndarray, 'S S 3'] | Patches
  drawn: DrawnView
  key: int
  corrupt: tuple[tuple[str, str], ...]
  filtered: int


@dataclasses.dataclass(frozen=True)
class View:
  """Draws a caption and an augmented view of a record's image.

  Grain seeds the generator by the position in the sequence of examples.

  Attributes:
    views: one of these is drawn; None makes one that is new each time.
  """

  preprocessing: Preprocessing
  augmentation: Augmentation
  views: 'Views | None' = None

  def __call__(
    self, element: CaptionedImage, rng: np.random.Generator
  ) -> Example:
    """Makes an example of a record."""
    caption, view = element.captions.draw(rng), 0
    if self.views is not None:
      view = int(rng.integers(self.views.count))
      rng = self.views.generator(element.id, view)
    preprocessing = self.preprocessing
    if element.max_patches:
      preprocessing = preprocessing.with_max_patches(element.max_patches)
    pixels = augment(element.image, preprocessing, self.augmentation, rng)
    return Example(
      as_input(pixels, preprocessing),
      DrawnView(element.index, element.id, view, caption),
      element.key,
      element.corrupt,
      element.filtered,
    )


@dataclasses.dataclass(frozen=True)
class SequenceLength:
  """Tells each example how many patches its step reads of an image.

  A step draws one of the lengths, each as likely, by (seed, step).
  """

  lengths: tuple[int, ...]
  batch_size: int  # all processes together
  seed: int

  def __call__(self, index: int, element: CaptionedImage) -> CaptionedImage:
    return element._replace(max_patches=self.of_step(index // self.batch_size))

  def of_step(self, step: int) -> int:
    """Returns the length of a step, counted from 0."""
    words = np.random.SeedSequence([self.seed % 2**64, step]).generate_state(1)
    return self.lengths[int(words[0]) % len(self.lengths)]


@dataclasses.dataclass(frozen=True)
class Collate:
  """Makes a batch of examples; all texts are tokenized in one call.

  Attributes:
    teachers: gives more arrays.
  """

  tokenizer: Tokenize
  teachers: Teachers | None = None

  def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
    """Makes a batch of examples."""
    images, drawn, keys, corrupt, filtered = zip(*examples, strict=True)
    captions = [view.caption for view in drawn]
    tokens = np.asarray(self.tokenizer(captions), np.int32)
    if isinstance(images[0], Patches):
      pixels, grids = zip(*images, strict=True)
      arrays = {'image': np.stack(pixels), 'grid': np.stack(grids)}
    else:
      arrays = {'image': np.stack(images)}
    return {
      **arrays,
      'tokens': tokens,
      **(self.teachers(drawn) if self.teachers else {}),
      'repeats': count_repeats(tokens, keys),
      'corrupt': tuple(itertools.chain(*corrupt)),
      'filtered': sum(filtered),
    }


def _key(image: bytes) -> int:
  """Returns a key of an image; to count, its length and a checksum suffice."""
  return len(image) << 32 | zlib.crc32(image)


class Repeats(NamedTuple):
  """Counts of pairs that repeat others of their batch, summed over batches.

  Where two pairs have the same caption, or the same image, each is a right
  answer for the other, and the loss pushes them apart as if it were wrong.

  Attributes:
    pairs: the number of pairs.
    captions, images: the number of pairs whose caption (as the model reads it),
      or whose image (the bytes of its file), another pair of the batch has too.
    either: the number of pairs of which the caption or the image repeats.
    floor: nats, the sum over pairs of ln(pairs of the batch with the same
      caption), below which no model brings the softmax loss of these pairs.
  """

  pairs: float = 0.0
  captions: float = 0.0
  images: float = 0.0
  either: float = 0.0
  floor: float = 0.0


def count_repeats(
  tokens: Int32[np.ndarray, 'b T'], images: Sequence[int]
) -> Float64[np.ndarray, '5']:
  """Returns the `Repeats` of one batch, to be added up.

  Args:
    tokens: the caption of each pair.
    images: a number for each pair, which is equal where the images are.
  """
  captions = _count_each([row.tobytes() for row in tokens])
  image_counts = _count_each(images)
  return np.array(
    Repeats(
      pairs=len(captions),
      captions=float(np.count_nonzero(captions > 1)),
      images=float(np.count_nonzero(image_counts > 1)),
      either=float(np.count_nonzero(np.maximum(captions, image_counts) > 1)),
      floor=float(np.log(captions).sum()),
    ),
    np.float64,
  )


def _count_each(values: Sequence[Hashable]) -> np.ndarray:
  """Returns how often each value is among all."""
  counts = collections.Counter(values)
  return np.array([counts[value] for value in values])
