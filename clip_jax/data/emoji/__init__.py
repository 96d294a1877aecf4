"""The embedded data set `emoji`: a TFDS builder package, and how it is built.

TFDS takes `emoji_dataset_builder.py`, README.md, CITATIONS.bib and TAGS.txt
from this folder; `tfds:emoji` as a SPEC builds it on first use.
"""

import os

from clip_jax.data.building import build


def build_emoji(data_dir: str | os.PathLike | None = None) -> str:
  """Builds the data set, unless it is there already (about four seconds).

  Args:
    data_dir: as of `building.build`.
  Returns:
    The folder with the records, DATA_DIR/emoji/VERSION.
  Raises:
    FailureError: the records could not be written.
  """
  from clip_jax.data.emoji.emoji_dataset_builder import Builder

  return build(Builder, data_dir)
