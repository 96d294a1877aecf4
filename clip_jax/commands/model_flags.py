"""The flags that name a model and say how it is read; loads it as they say."""

from typing import TYPE_CHECKING, Any

from absl import flags

from clip_jax.commands.common_flags import define_path, require
from clip_jax.errors import UsageError

if TYPE_CHECKING:
  from clip_jax.data.sources import Source
  from clip_jax.data.text_lines import TextLines
  from clip_jax.inference.embed_job import EmbedJob
  from clip_jax.inference.loading import Loaded
  from clip_jax.inference.model import Model

_MODEL_EXAMPLE = (
  "name a run's workdir, a directory of transformers or open_clip, or a "
  'weight file'
)


def define_model(values: flags.FlagValues) -> None:
  """Defines --model, and how it is read: what `clip_jax.load` takes."""
  define_path(
    values,
    'model',
    "a run's workdir or checkpoint, a directory of transformers or open_clip, "
    'a weight file, or an export',
  )
  define_reading(values)


def define_reading(values: flags.FlagValues) -> None:
  """Defines how a model is read, as `define_model` does."""
  text, number = flags.DEFINE_string, flags.DEFINE_integer
  text(
    'preset',
    None,
    'the published name of a bare weight file: ViT-B/32, ViT-B-32-quickgelu, …',
    flag_values=values,
  )
  text(
    'activation',
    None,
    'of a bare weight file: gelu or quick_gelu',
    flag_values=values,
  )
  flags.DEFINE_list(
    'heads',
    None,
    'of a bare weight file: those of the image tower, or IMAGE,TEXT',
    flag_values=values,
  )
  text(
    'weights',
    None,
    'the name of one model in a file that holds more, such as ema_state_dict; '
    'raw: the weights of a run, instead of their moving averages',
    flag_values=values,
  )
  text(
    'tokenizer',
    None,
    "instead of the model's: clip, sentencepiece:PATH, siglip:PATH, hf:PATH",
    flag_values=values,
  )
  number(
    'image_size',
    None,
    'pixels a side, instead of those it was trained with',
    1,
    flag_values=values,
  )
  flags.DEFINE_bool(
    'as_displayed',
    False,
    'turn photographs by EXIF and lay transparency on white',
    flag_values=values,
  )


def reference_of(values: flags.FlagValues) -> str:
  """Returns the value of --model.

  Raises:
    UsageError: it was not given.
  """
  return require(values.model, 'model', _MODEL_EXAMPLE)


def load_model(values: flags.FlagValues, **options: Any) -> 'Model':
  """Returns the model of --model, read as the flags beside it say.

  Args:
    options: of `clip_jax.load`, such as `dtype`.
  """
  from clip_jax.inference.loading import load
  from clip_jax.parallel.devices import use_compilation_cache

  use_compilation_cache()
  return load(
    reference_of(values),
    preset=values.preset,
    activation=values.activation,
    heads=_heads(values),
    weights=values.weights,
    **_reading(values),
    **options,
  )


def load_over_devices(values: flags.FlagValues) -> 'Model':
  """Loads --model as `define_encoding` says, over all devices."""
  import jax

  from clip_jax.parallel.mesh import make_mesh

  return load_model(
    values,
    dtype=values.dtype,
    batch_size=values.batch_size,
    mesh=make_mesh() if jax.device_count() > 1 else None,
  )


def embed_job(
  values: flags.FlagValues,
  source: 'Source | None',
  *,
  texts: 'TextLines | None' = None,
  texts_name: str = '',
  part_rows: int = 1024,
  worker: tuple[int, int] = (0, 1),
) -> 'EmbedJob':
  """Returns the job that embeds with --model, as `define_encoding` says.

  Args:
    source, texts, texts_name, worker: see `EmbedJob`.
    part_rows: records a part; rounded up to whole batches.
  """
  from clip_jax.inference.embed_job import EmbedJob

  return EmbedJob(
    model=load_model(values, dtype=values.dtype, batch_size=values.batch_size),
    dtype=values.dtype,
    source=source,
    captions=values.captions,
    texts=texts,
    texts_name=texts_name,
    max_corrupt=values.max_corrupt,
    part_rows=-(-part_rows // values.batch_size) * values.batch_size,
    worker=worker,
  )


def read_model(
  values: flags.FlagValues, reference: str | None = None, **options: Any
) -> 'Loaded':
  """Reads a model as `load_model` does, and puts nothing on a device.

  Its arrays have the dtypes of its files.

  Args:
    reference: instead of --model.
    options: of `loading.read_model`, such as `dtype`.
  """
  from clip_jax.inference import loading

  return loading.read_model(
    reference or reference_of(values),
    hints=loading.Hints(
      values.preset, values.activation, _heads(values), values.weights
    ),
    **_reading(values),
    **options,
  )


def _heads(values: flags.FlagValues) -> tuple[int, ...] | None:
  if not values.heads:
    return None
  if not all(count.isascii() and count.isdigit() for count in values.heads):
    raise UsageError(
      f'--heads={",".join(values.heads)}: give a number of heads of the image '
      'tower, or two, as in --heads=12,8.'
    )
  return tuple(map(int, values.heads))


def _reading(values: flags.FlagValues) -> dict[str, Any]:
  return {
    name: values[name].value
    for name in ('tokenizer', 'image_size', 'as_displayed')
  }
