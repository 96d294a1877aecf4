"""Builds the data sets that come with this package, on first use.

Each is a TFDS builder package in a folder of its name. The SPEC `tfds:emoji`
builds it in the folder where TFDS keeps its data sets.
"""

import contextlib
import importlib
import io
import os
import sys

from clip_jax.errors import FailureError
from clip_jax.files import expand_path

BUILT_IN = ('emoji', 'digits')


def tfds_folder() -> str:
  """Returns TFDS's folder: TFDS_DATA_DIR, or ~/tensorflow_datasets.

  It is the default of TFDS, which takes a second to import.
  """
  folder = os.environ.get('TFDS_DATA_DIR')
  folder = folder or os.path.join('~', 'tensorflow_datasets')
  return expand_path(folder)


def build(name: str, data_dir: str | os.PathLike | None = None) -> str:
  """Builds a data set, unless it is there already (a few seconds).

  It appears complete or not at all: TFDS writes into a folder with a name of
  its own and renames that. Of two processes that build at once, the second to
  finish takes what the first one left.

  Args:
    name: one of `BUILT_IN`.
    data_dir: where TFDS keeps its data sets; see `tfds_folder`.
  Returns:
    The folder with the records, DATA_DIR/NAME/VERSION.
  Raises:
    FailureError: the records could not be written.
  """
  import tensorflow_datasets as tfds

  folder = expand_path(data_dir or tfds_folder())
  module = f'clip_jax.data.{name}.{name}_dataset_builder'
  builder_class = importlib.import_module(module).Builder
  builder = builder_class(data_dir=folder, file_format='array_record')
  target = builder.data_path
  if target.exists():
    return os.fspath(target)
  print(f'building the data set {builder.name} in {target}', file=sys.stderr)
  tfds.disable_progress_bar()
  try:
    # TFDS prints to stdout, which belongs to results (--json).
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare()
  except Exception as error:
    if not target.exists():  # Else another process was faster.
      reason = (str(error) or repr(error)).splitlines()[0]
      raise FailureError(
        f'cannot build the data set {builder.name} in {target}: {reason}'
      ) from error
  finally:
    tfds.enable_progress_bar()
  return os.fspath(target)
