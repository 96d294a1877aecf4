"""The embedded data set `emoji`: a TFDS builder package, and how it is built.

TFDS takes `emoji_dataset_builder.py`, README.md, CITATIONS.bib and TAGS.txt
from this folder; `tfds:emoji` as a SPEC builds it on first use.
"""

import contextlib
import io
import os
import sys

from clip_jax.errors import FailureError


def build_emoji(data_dir: str | os.PathLike | None = None) -> str:
  """Builds the data set, unless it is there already (about four seconds).

  It appears complete or not at all: TFDS writes into a folder with a name of
  its own and renames that. Of two processes that build at once, the second to
  finish takes what the first one left.

  Args:
    data_dir: where TFDS keeps its data sets; by default TFDS's own place,
      ~/tensorflow_datasets or what TFDS_DATA_DIR says.
  Returns:
    The folder with the records, DATA_DIR/emoji/VERSION.
  Raises:
    FailureError: the records could not be written.
  """
  import tensorflow_datasets as tfds

  from clip_jax.data.emoji.emoji_dataset_builder import Builder

  data_dir = data_dir or os.environ.get('TFDS_DATA_DIR')
  if data_dir is not None:
    data_dir = os.path.expanduser(os.fspath(data_dir))
  builder = Builder(data_dir=data_dir, file_format='array_record')
  target = builder.data_path
  if target.exists():
    return os.fspath(target)
  print(f'building the data set emoji in {target}', file=sys.stderr)
  tfds.disable_progress_bar()
  try:
    # TFDS prints to stdout, which belongs to results (--json).
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare()
  except Exception as error:
    if not target.exists():  # Else another process was faster.
      reason = (str(error) or repr(error)).splitlines()[0]
      raise FailureError(
        f'cannot build the data set emoji in {target}: {reason}'
      ) from error
  finally:
    tfds.enable_progress_bar()
  return os.fspath(target)
