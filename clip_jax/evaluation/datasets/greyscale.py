"""The same pictures without their colours: a shift that costs no download."""

import io

from clip_jax.data.images import convert, decode
from clip_jax.data.sources import Record, Source


class Greyscale(Source):
  """A source whose pictures are grey; all else is as it was."""

  def __init__(self, source: Source):
    self.spec = f'{source.spec}, greyscale'  # not the same pictures
    self.label_names = source.label_names
    self.notices = source.notices
    self._source = source

  def __len__(self) -> int:
    return len(self._source)

  def id(self, index: int) -> str:
    return self._source.id(index)

  def captions(self, index: int) -> list[str]:
    return self._source.captions(index)

  def __getitem__(self, index: int) -> Record:
    record = self._source[index]
    # Luma of ITU-R 601, as Pillow has it.
    grey = convert(convert(decode(record['image']), 'L'), 'RGB')
    encoded = io.BytesIO()
    grey.save(encoded, 'PNG')
    return {**record, 'image': encoded.getvalue()}
