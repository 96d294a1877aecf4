"""Small data sets with the features of TFDS's own, which need a download."""

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

Records = Sequence[Mapping[str, Any]]


def image() -> io.BytesIO:
  """A PNG: without TensorFlow, TFDS takes encoded images only."""
  file = io.BytesIO()
  Image.new('RGB', (4, 4), 'red').save(file, 'PNG')
  file.seek(0)
  return file


def write(
  data_dir: str | os.PathLike,
  like: str,
  splits: Mapping[str, Records],
  *,
  file_format: str = 'array_record',
  features: Mapping[str, Any] | None = None,
) -> None:
  """Prepares a data set under the name of one of TFDS's.

  Args:
    data_dir: as in TFDS_DATA_DIR.
    like: 'voc/2007': whose features and name it has.
    splits: records by split; an image is added where they have none.
    features: instead of those of TFDS.
  """
  name, _, config = like.partition('/')
  if features is None:
    real: Any = tfds.builder(like, data_dir=os.path.join(data_dir, 'none'))
    features = dict(real.info.features.items())

  configs = [tfds.core.BuilderConfig(name=config)] if config else []

  class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = configs

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(features)
      )

    def _split_generators(self, dl_manager):
      del dl_manager
      return {
        split: self._generate_examples(rows) for split, rows in splits.items()
      }

    def _generate_examples(self, rows: Records) -> Iterator[tuple[int, Any]]:
      for index, row in enumerate(rows):
        yield index, {'image': image(), **row}

  Tiny.name = name
  tfds.disable_progress_bar()
  Tiny(data_dir=data_dir, file_format=file_format).download_and_prepare()
