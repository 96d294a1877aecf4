"""A job's records on their way to the encoder, and what is kept of them."""

from collections.abc import Generator, Iterable, Iterator, Sequence

from clip_jax.data.reading import read_ahead, too_many_corrupt
from clip_jax.data.sources import Source
from clip_jax.errors import FailureError
from clip_jax.inference.bulk.encode import Encoded, Item
from clip_jax.inference.bulk.job import Job
from clip_jax.inference.bulk.parts import Notes, Part


def items_of(
  job: Job, kind: str, parts: Sequence[Part], corrupt: dict[str, str]
) -> Generator[Item, None, None]:
  """The records of some parts, in order.

  Args:
    corrupt: id to reason, of those that were left out before.
  Raises:
    FailureError: with those that come, they are too many.
  """
  indices = (i for part in parts for i in range(part.start, part.stop))
  if kind == 'image' and job.source is not None:
    yield from _pictures(job, job.source, indices, corrupt)
  if kind == 'text' and job.texts is not None:
    for i in indices:
      text = job.texts[i]
      yield Item(f'{job.texts_name}:{job.texts.numbers[i]}', text, text)


def _pictures(
  job: Job, source: Source, indices: Iterable[int], corrupt: dict[str, str]
) -> Iterator[Item]:
  counted = dict(corrupt)
  for read in read_ahead(source, indices):
    key = read.record['id']
    if read.picture is None:
      counted[key] = read.reason
      check_corrupt(job, counted)
      yield Item(key, '', None, read.reason)
    else:
      yield Item(key, (read.record['caption'] or [''])[0], read.picture)


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
    corrupt={item.id: item.reason for item in encoded.items if item.reason},
    truncated=truncated,
  )


def check_corrupt(job: Job, corrupt: dict[str, str]) -> None:
  """Ends the work when too many pictures cannot be read.

  Raises:
    FailureError: they are more than the job allows.
  """
  if job.source is not None and len(corrupt) > job.max_corrupt:
    raise FailureError(
      too_many_corrupt(job.source.spec, job.max_corrupt, corrupt)
    )
