"""Pictures on their way to the encoder."""

from collections.abc import Generator, Iterable, Mapping

from clip_jax.data.images import Preprocessing
from clip_jax.data.reading import read_ahead, too_many_corrupt
from clip_jax.data.sources import Source
from clip_jax.errors import FailureError
from clip_jax.inference.bulk.encode import Item


def picture_items(
  source: Source,
  indices: Iterable[int],
  corrupt: Mapping[str, str],
  max_corrupt: int,
  *,
  preprocessing: Preprocessing | None = None,
) -> Generator[Item, None, None]:
  """Yields pictures of a source in the order of the indices, decoded ahead."""
  counted = dict(corrupt)
  for read in read_ahead(source, indices, preprocessing=preprocessing):
    key = read.record['id']
    if read.reason:
      counted[key] = read.reason
      refuse_corrupt(source, counted, max_corrupt)
      yield Item(key, '', None, read.reason)
    else:
      caption = (read.record['caption'] or [''])[0]
      yield Item(
        key, caption, read.image, record=read.record, digest=read.digest
      )


def refuse_corrupt(
  source: Source, corrupt: Mapping[str, str], max_corrupt: int
) -> None:
  """The same of a source.

  Raises:
    FailureError: more than `max_corrupt` pictures cannot be read.
  """
  if len(corrupt) > max_corrupt:
    raise FailureError(too_many_corrupt(source.spec, max_corrupt, corrupt))
