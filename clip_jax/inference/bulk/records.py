"""A job's records on their way to the encoder, and what is kept of them."""

from collections.abc import Generator, Iterable, Mapping, Sequence

from clip_jax.data.images import Preprocessing
from clip_jax.data.reading import digest_of, read_ahead, too_many_corrupt
from clip_jax.data.sources import Source
from clip_jax.errors import FailureError
from clip_jax.inference.bulk.encode import Encoded, Item
from clip_jax.inference.bulk.job import Job
from clip_jax.inference.bulk.known import Known, Rows
from clip_jax.inference.bulk.parts import Notes, Part


def items_of(
  job: Job,
  kind: str,
  parts: Sequence[Part],
  corrupt: dict[str, str],
  known: Known,
) -> Generator[Item, None, None]:
  """The records of some parts, in order.

  Args:
    corrupt: id to reason, of those that were left out before.
    known: what need not be encoded.
  Raises:
    FailureError: with those that come, they are too many.
  """
  rows = known.of(kind)
  indices = (i for part in parts for i in range(part.start, part.stop))
  if kind == 'image' and job.source is not None:
    limit = job.max_corrupt
    yield from picture_items(
      job.source, indices, corrupt, limit, rows, job.model.preprocessing
    )
  if kind == 'text' and job.texts is not None:
    for i in indices:
      text = job.texts[i]
      digest = digest_of(text.encode('utf-8', 'surrogatepass'))
      key = f'{job.texts_name}:{job.texts.numbers[i]}'
      yield Item(key, text, text, digest=digest, known=rows.find(digest))


def picture_items(
  source: Source,
  indices: Iterable[int],
  corrupt: Mapping[str, str],
  max_corrupt: int,
  known: Rows | None = None,
  preprocessing: Preprocessing | None = None,
) -> Generator[Item, None, None]:
  """Pictures of a source in the order of the indices, decoded ahead.

  Args:
    corrupt: id to reason, of those that were left out before.
    max_corrupt: how many may be.
    known: rows of an earlier table, whose pictures are not decoded.
    preprocessing: of the model that they are for; None leaves them as they are.
  Raises:
    FailureError: with those that come, they are too many.
  """
  counted = dict(corrupt)
  rows = known or Rows()
  for read in read_ahead(
    source, indices, lambda x: rows.find(x) >= 0, preprocessing
  ):
    key = read.record['id']
    if read.reason:
      counted[key] = read.reason
      refuse_corrupt(source, counted, max_corrupt)
      yield Item(key, '', None, read.reason)
    else:
      caption = (read.record['caption'] or [''])[0]
      yield Item(
        key,
        caption,
        read.image,
        record=read.record,
        digest=read.digest,
        known=rows.find(read.digest),
      )


def notes_of(job: Job, encoded: Encoded) -> Notes:
  """What a part's file says beside the vectors."""
  rows = [item for item in encoded.items if not item.reason]
  truncated = 0
  if encoded.part.kind == 'text':
    tokenizer = job.model.tokenizer
    lengths = tokenizer.text_lengths([item.caption for item in rows])
    truncated = int((lengths > tokenizer.context_length).sum())
  return Notes(
    ids=[item.id for item in rows],
    captions=[item.caption for item in rows],
    digests=b''.join(item.digest for item in rows).hex(),
    corrupt={item.id: item.reason for item in encoded.items if item.reason},
    truncated=truncated,
  )


def check_corrupt(job: Job, corrupt: dict[str, str]) -> None:
  """Ends the work when too many pictures cannot be read.

  Raises:
    FailureError: they are more than the job allows.
  """
  if job.source is not None:
    refuse_corrupt(job.source, corrupt, job.max_corrupt)


def refuse_corrupt(
  source: Source, corrupt: Mapping[str, str], max_corrupt: int
) -> None:
  """The same of a source.

  Raises:
    FailureError: more than `max_corrupt` pictures cannot be read.
  """
  if len(corrupt) > max_corrupt:
    raise FailureError(too_many_corrupt(source.spec, max_corrupt, corrupt))
