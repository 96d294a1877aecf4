"""Tells a model's parameters, arithmetic and shapes.

usage:
  clip-jax info --model=REF | --preset=NAME | --all [--json]

examples:
  clip-jax info --preset=ViT-B/32
  clip-jax info --model=runs/emoji --json
  clip-jax info --model=weights.pt --preset=ViT-B-32
  clip-jax info --all

GFLOPs are those of the matrix products and convolutions of one image or text,
forward, with a multiply-add as 2, as in open_clip's tables.
"""

from typing import TYPE_CHECKING, Any

from absl import flags

from clip_jax.commands import common_flags, model_flags, printing
from clip_jax.errors import UsageError

if TYPE_CHECKING:
  from clip_jax.inference.model import Model


def define_flags(values: flags.FlagValues) -> None:
  """Adds this verb's flags."""
  model_flags.define_model(values)
  flags.DEFINE_bool(
    'all', False, 'a table of all published shapes', flag_values=values
  )
  common_flags.define_json(values)


def run(values: flags.FlagValues, words: list[str]) -> None:
  """Prints what is known."""
  common_flags.no_words('info', words)
  if bool(values.model or values.preset) == values.all:
    raise UsageError(
      'info needs --model=REF, --preset=NAME or --all, and one of them.'
    )
  if values.all:
    from clip_jax.models.presets import PRESETS

    facts = [_of_preset(name, None) for name in PRESETS]
  elif values.model:
    facts = _of_model(values)
  else:
    facts = _of_preset(values.preset, values.image_size)
  if values.json:
    printing.print_json(facts)
  elif isinstance(facts, list):
    _print_table(facts)
  else:
    _print_one(facts)


def _of_preset(name: str, image_size: int | None) -> dict[str, Any]:
  """Returns the facts of a published shape, maybe for another image size."""
  from clip_jax.models import presets

  preset, preprocessing = presets.find(name), presets.preprocessing_of(name)
  if preprocessing.is_native:
    config = preset.config
    if image_size:
      preprocessing = preprocessing.of_size(image_size)
    facts = _of_config(config) | _of_native(config, preprocessing)
  else:
    config = presets.resolve(name, {'image': {'image_size': image_size}})
    facts = _of_config(config)
    preprocessing = preprocessing.of_size(config.image.image_size)
  return {
    'name': name,
    **facts,
    'origin': preset.origin,
    'tokenizer': preset.tokenizer,
    'preprocessing': preprocessing.to_dict(),
  }


def _of_model(values: flags.FlagValues) -> dict[str, Any]:
  model = model_flags.load_model(values)
  tokenizer = model.description.tokenizer
  facts = _of_config(model.config)
  if model.description.absent:
    facts |= _of_one_tower(model)
  if model.preprocessing.is_native:
    facts |= _of_native(model.config, model.preprocessing)
  return {
    'name': values.model,
    **facts,
    'step': model.step,
    'logit_scale': round(model.logit_scale, 4),
    'logit_bias': model.logit_bias,
    'tokenizer': None if tokenizer is None else tokenizer.get('kind'),
    'preprocessing': model.preprocessing.to_dict(),
  }


def _of_native(config: Any, preprocessing: Any) -> dict[str, Any]:
  """Returns the facts of images that keep their aspect, at the most patches."""
  from clip_jax.models import counting

  most = preprocessing.max_patches
  flops = counting.image_flops(config, patches=most)
  return {
    'image_size': None,
    'patches': most,
    'gflops_per_image': flops / 1e9,
  }


def _of_one_tower(model: 'Model') -> dict[str, Any]:
  """Returns the facts that differ where a model has one tower only."""
  import jax

  [absent] = model.description.absent
  leaves = jax.tree.leaves(
    {k: v for k, v in model.params.items() if not k.startswith('logit')}
  )
  facts: dict[str, Any] = {
    'absent': absent,
    'parameters': sum(leaf.size for leaf in leaves),
    f'{absent}_parameters': None,
    f'gflops_per_{absent}': None,
  }
  names = {
    'image': ('image_size', 'patches'),
    'text': ('context_length', 'vocab_size'),
  }
  facts |= dict.fromkeys(names[absent])
  config = model.config.to_dict() | {absent: None}
  return {**facts, 'config': config}


def _of_config(config: Any) -> dict[str, Any]:
  from clip_jax.models import counting

  count = counting.count_parameters(config)
  return {
    'parameters': count.total,
    'image_parameters': count.image,
    'text_parameters': count.text,
    'gflops_per_image': counting.image_flops(config) / 1e9,
    'gflops_per_text': counting.text_flops(config) / 1e9,
    'image_size': config.image.image_size,
    'patches': config.image.patches,
    'context_length': config.text.context_length,
    'vocab_size': config.text.vocab_size,
    'embed_dim': config.embed_dim,
    'config': config.to_dict(),
    **_of_decoder(config, count.decoder),
  }


def _of_decoder(config: Any, parameters: int) -> dict[str, Any]:
  from clip_jax.models import counting

  if config.decoder is None:
    return {}
  return {
    'decoder_parameters': parameters,
    'gflops_per_caption': counting.decoder_flops(config) / 1e9,
  }


def _print_one(facts: dict[str, Any]) -> None:
  print(f'{facts["name"]}: {facts["parameters"]:,} parameters')
  print(f'joint space: {facts["embed_dim"]} dimensions')
  if facts.get('step') is not None:
    print(f'trained to step {facts["step"]:,}')
  if facts.get('absent'):
    print(f'without its {facts["absent"]} tower')
  elif 'logit_scale' in facts:
    known = facts['logit_bias'] is not None
    bias = f', bias {facts["logit_bias"]:.2f}' if known else ''
    print(f'logit scale {facts["logit_scale"]:.2f}{bias}')
  print(f'tokenizer: {facts["tokenizer"] or "none came with it"}')
  if 'origin' in facts:
    print(f'shapes: {facts["origin"]}')
  print()
  columns: list[tuple[str, ...]] = [_NAMES]
  if facts['config']['image']:
    columns.append(_image_column(facts))
  if facts['config']['text']:
    columns.append(_text_column(facts))
  if 'decoder_parameters' in facts:
    columns.append(_decoder_column(facts))
  print(align_columns(list(zip(*columns, strict=True))))


_NAMES = (
  *('', 'parameters', 'fraction', 'GFLOPs each', 'input', 'read as', 'blocks'),
  *('width', 'heads', 'activation', 'pooling'),
)


def _image_column(facts: dict[str, Any]) -> tuple[str, ...]:
  image = facts['config']['image']
  if 'layers' in image:
    read_as = f'{facts["patches"]:,} positions of 32 px'
    blocks = ', '.join(map(str, image['layers']))
    width = f'{image["width"]} to {32 * image["width"]:,}'
  else:
    read_as = f'{facts["patches"]:,} patches of {image["patch_size"]} px'
    blocks, width = str(image['depth']), f'{image["width"]:,}'
  return (
    'image',
    f'{facts["image_parameters"]:,}',
    _fraction(facts, 'image'),
    _round(facts['gflops_per_image']),
    'native aspect'
    if facts['image_size'] is None
    else f'{image["image_size"]} x {image["image_size"]} px',
    read_as,
    blocks,
    width,
    str(image['heads']),
    image.get('activation', 'relu'),
    image.get('pooling', 'attention'),
  )


def _text_column(facts: dict[str, Any]) -> tuple[str, ...]:
  text = facts['config']['text']
  return (
    'text',
    f'{facts["text_parameters"]:,}',
    _fraction(facts, 'text'),
    _round(facts['gflops_per_text']),
    f'{text["context_length"]} tokens',
    f'{text["vocab_size"]:,} ids',
    str(text['depth']),
    f'{text["width"]:,}',
    str(text['heads']),
    text['activation'],
    text['pooling'],
  )


def _decoder_column(facts: dict[str, Any]) -> tuple[str, ...]:
  decoder = facts['config']['decoder']
  read_as = {
    'tokens': 'its own embedding',
    'text_tower': "the text tower's states",
    'image_prefix': 'the image, then its own embedding',
    'pooled_image': 'no text',
  }[decoder['reads']]
  is_linear = decoder['reads'] == 'pooled_image'
  return (
    'decoder',
    f'{facts["decoder_parameters"]:,}',
    _fraction(facts, 'decoder'),
    _round(facts['gflops_per_caption']),
    f'{facts["vocab_size"]:,} ids'
    if is_linear
    else f'{facts["context_length"]} tokens',
    read_as,
    'linear' if is_linear else str(decoder['depth']),
    '' if is_linear else f'{decoder["width"]:,}',
    '' if is_linear else str(decoder['heads']),
    '' if is_linear else decoder['activation'],
    '' if is_linear else 'none: each token',
  )


def _print_table(models: list[dict[str, Any]]) -> None:
  rows = [
    (
      '', 'parameters', 'image', 'text', 'GFLOPs/image', 'GFLOPs/text',
      'pixels', 'patches', 'tokens', 'dimensions',
    )
  ]  # fmt: skip
  for facts in models:
    rows.append(
      (
        facts['name'],
        f'{facts["parameters"]:,}',
        f'{facts["image_parameters"]:,}',
        f'{facts["text_parameters"]:,}',
        _round(facts['gflops_per_image']),
        _round(facts['gflops_per_text']),
        str(facts['image_size']),
        str(facts['patches']),
        str(facts['context_length']),
        str(facts['embed_dim']),
      )
    )
  print(align_columns(rows))


def align_columns(rows: list[tuple[str, ...]]) -> str:
  """Returns rows as lines; the first column is to the left, others right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
    '  '.join(
      cell.rjust(width) if i else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  )


def _fraction(facts: dict[str, Any], tower: str) -> str:
  return f'{100 * facts[f"{tower}_parameters"] / facts["parameters"]:.1f} %'


def _round(gflops: float) -> str:
  return f'{gflops:,.2f}' if gflops >= 0.1 else f'{gflops:.2g}'
