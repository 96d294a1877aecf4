"""Builds a data set that comes with the package.

usage:
  clip-jax data build NAME [--json]

examples:
  clip-jax data build emoji
  clip-jax data build digits

It is written to TFDS's own folder (TFDS_DATA_DIR, or ~/tensorflow_datasets),
which tfds:NAME reads.
"""

from absl import flags

from clip_jax.commands import common_flags, printing
from clip_jax.errors import UsageError


def define_flags(values: flags.FlagValues) -> None:
  """Adds this action's flags."""
  common_flags.define_json(values)


def run(values: flags.FlagValues, words: list[str]) -> None:
  """Builds the data set of that name, and prints where it is."""
  from clip_jax.data.built_in import BUILT_IN, build

  if len(words) != 1 or words[0] not in BUILT_IN:
    raise UsageError(
      f'data build what? One of {", ".join(BUILT_IN)}. (Other TFDS data sets '
      'are prepared by `tfds build --file_format=array_record`.)'
    )
  path = build(words[0])
  if values.json:
    printing.print_json({'name': words[0], 'path': path})
  else:
    print(f'{words[0]} is ready in {path}; use it as tfds:{words[0]}')
