"""What is to be embedded, and what has been done of it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from clip_jax.data.sources import Source
from clip_jax.data.text_lines import TextLines
from clip_jax.inference.bulk.identity import identity_of
from clip_jax.inference.bulk.known import Update
from clip_jax.inference.bulk.parts import Notes, Part
from clip_jax.inference.embeddings import Extent, Lengths
from clip_jax.inference.model import Model


@dataclasses.dataclass(frozen=True)
class Job:
  """What is to be embedded.

  Attributes:
    model: encodes it.
    dtype: of the model's arithmetic.
    source: pictures, or None.
    captions: the columns that the source's captions come from.
    texts: to come after the pictures, or None.
    texts_name: of their file; a text's id is this and its line's number.
    max_corrupt: pictures that may be left out, over the whole job.
    part_rows: records a part, which is what a kill costs at most; a job that
      goes on keeps the number that it began with.
    share: index and count: this process makes each count-th part.
  """

  model: Model
  dtype: str
  source: Source | None
  captions: Sequence[str]
  texts: TextLines | None
  texts_name: str
  max_corrupt: int
  part_rows: int
  share: tuple[int, int] = (0, 1)

  def identity(self) -> dict[str, Any]:
    """See `identity_of`."""
    return identity_of(
      self.model,
      dtype=self.dtype,
      images='' if self.source is None else self.source.spec,
      captions=list(self.captions),
      records=0 if self.source is None else len(self.source),
      outline=() if self.source is None else self.source.outline(),
      texts=self.texts_name,
      lines=self.texts or (),
    )


@dataclasses.dataclass
class Summary:
  """What has been done.

  Attributes:
    parts, planned: those that are there, and all.
    images, texts: rows.
    corrupt: id to reason, of the pictures left out.
    truncated: texts that were cut.
    dims: E; 0 where there is no part.
    ids, captions: how long they are.
    joined: whether the output is there.
    update: what became of the rows of an earlier output, where one served.
  """

  parts: int = 0
  planned: int = 0
  images: int = 0
  texts: int = 0
  corrupt: dict[str, str] = dataclasses.field(default_factory=dict)
  truncated: int = 0
  dims: int = 0
  ids: Lengths = dataclasses.field(default_factory=Lengths)
  captions: Lengths = dataclasses.field(default_factory=Lengths)
  joined: bool = False
  update: Update | None = None

  def add(self, part: Part, notes: Notes, dims: int) -> None:
    """Counts one part in."""
    self.parts += 1
    rows = len(notes.ids)
    if part.kind == 'image':
      self.images += rows
    else:
      self.texts += rows
    self.corrupt.update(notes.corrupt)
    self.truncated += notes.truncated
    self.dims = max(self.dims, dims)
    self.ids = self.ids.and_of(notes.ids)
    self.captions = self.captions.and_of(notes.captions)

  def extent(self) -> Extent:
    """Returns the extent of the table that all these rows make."""
    rows = self.images + self.texts
    return Extent(rows, self.dims, self.ids, self.captions)
