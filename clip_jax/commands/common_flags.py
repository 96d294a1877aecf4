"""Flags that several verbs share, said once."""

from absl import flags


def define_model(values: flags.FlagValues) -> None:
  """--model: what `clip_jax.load` takes."""
  flags.DEFINE_string(
    'model', None, "a run's workdir or one checkpoint", flag_values=values
  )


def define_templates(values: flags.FlagValues) -> None:
  """--templates: prompts around names; see `classify.templates_of`."""
  flags.DEFINE_multi_string(
    'templates',
    ['{}'],
    'a prompt with {} for the name, or @FILE with one a line; several of '
    'these flags are averaged',
    flag_values=values,
  )


def define_captions(values: flags.FlagValues) -> None:
  """--captions: which columns of a data set are texts."""
  flags.DEFINE_list(
    'captions',
    ['caption'],
    'columns or features that hold captions',
    flag_values=values,
  )


def define_encoding(values: flags.FlagValues) -> None:
  """How a data set is encoded: rows at once, dtype, corrupt pictures."""
  flags.DEFINE_integer(
    'batch_size', 64, 'rows on the device at once', flag_values=values
  )
  flags.DEFINE_string(
    'dtype',
    'float32',
    'of the arithmetic: float32 or bfloat16',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'max_corrupt', 100, 'unreadable pictures to leave out', flag_values=values
  )


def define_json(values: flags.FlagValues) -> None:
  """--json: one JSON document on stdout, and nothing else there."""
  flags.DEFINE_bool(
    'json', False, 'print one JSON document', flag_values=values
  )
