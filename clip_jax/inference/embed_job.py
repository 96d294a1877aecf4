"""A job of embedding: what is encoded by which model, and how it is divided."""

import dataclasses
import json
from collections.abc import Generator, Sequence
from typing import Any

from clip_jax.data.reading import digest_of
from clip_jax.data.sources import Source
from clip_jax.data.text_lines import TextLines
from clip_jax.inference.embed_folder import VERSION
from clip_jax.inference.encode_shards import Item, image_items
from clip_jax.inference.identity import (
  hash_lines,
  hash_tokenizer,
  model_identity,
)
from clip_jax.inference.model import Model
from clip_jax.inference.reused_rows import EarlierTable
from clip_jax.inference.shards import Shard, records_of


@dataclasses.dataclass(frozen=True)
class EmbedJob:
  """The inputs and the output of one call of `embed`.

  Attributes:
    model: encodes it.
    dtype: of the model's arithmetic.
    source: images, or None.
    captions: the columns that the source's captions come from.
    texts: to come after the images, or None.
    texts_name: of their file; a text's id is this and its line's number.
    max_corrupt: images that may be left out, over the whole job.
    part_rows: records a shard, which is what a kill costs at most; a job that
      goes on keeps the number that it began with.
    worker: index and count: this process makes each count-th shard.
  """

  model: Model
  dtype: str
  source: Source | None
  captions: Sequence[str]
  texts: TextLines | None
  texts_name: str
  max_corrupt: int
  part_rows: int
  worker: tuple[int, int] = (0, 1)

  def identity(self) -> dict[str, Any]:
    """Returns everything that the rows depend on, as JSON has it."""
    model, source = self.model, self.source
    has_images = source is not None
    identity = {
      'version': VERSION,
      **model_identity(model),
      'preprocessing': model.preprocessing.to_dict() if has_images else None,
      'tokenizer': (
        hash_tokenizer(model.tokenizer.describe()) if self.texts_name else None
      ),
      'dtype': self.dtype,
      'images': source.spec if has_images else '',
      'captions': list(self.captions),
      'records': len(source) if has_images else 0,
      'outline': hash_lines(source.outline() if has_images else ()),
      'texts': self.texts_name,
      'texts_hash': hash_lines(self.texts or ()),
    }
    return json.loads(json.dumps(identity))

  def items(
    self,
    kind: str,
    shards: Sequence[Shard],
    corrupt: dict[str, str],
    earlier: EarlierTable,
  ) -> Generator[Item, None, None]:
    """Yields the records of some shards of one kind, in order.

    Args:
      corrupt: id to reason, of those that were left out before.
      earlier: what need not be encoded.
    Raises:
      FailureError: with those that come, too many are corrupt.
    """
    rows = earlier.rows(kind)
    if kind == 'image' and self.source is not None:
      yield from image_items(
        self.source,
        records_of(shards),
        corrupt,
        self.max_corrupt,
        reused_row=rows.find,
        preprocessing=self.model.preprocessing,
      )
    if kind == 'text' and self.texts is not None:
      for i in records_of(shards):
        text = self.texts[i]
        digest = digest_of(text.encode('utf-8', 'surrogatepass'))
        key = f'{self.texts_name}:{self.texts.numbers[i]}'
        row = rows.find(digest)
        yield Item(key, text, text, digest=digest, reused_row=row)
