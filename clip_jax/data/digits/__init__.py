"""The data set `digits`: a TFDS builder package, and how it is built.

A small labelled data set that every machine has, since scikit-learn ships its
pictures; `tfds:digits` as a SPEC builds it on first use.
"""

import os

from clip_jax.data.building import build


def build_digits(data_dir: str | os.PathLike | None = None) -> str:
  """Builds the data set, unless it is there already (about two seconds).

  Args:
    data_dir: as of `building.build`.
  Returns:
    The folder with the records, DATA_DIR/digits/VERSION.
  Raises:
    FailureError: the records could not be written.
  """
  from clip_jax.data.digits.digits_dataset_builder import Builder

  return build(Builder, data_dir)
