"""A model's parameters, arithmetic and shapes.

usage:
  clip-jax info --model=REF | --preset=NAME | --all [--json]

examples:
  clip-jax info --preset=ViT-B/32
  clip-jax info --model=runs/emoji --json
  clip-jax info --all

GFLOPs are those of the matrix products of one image or text, forward, with a
multiply-add as 2, as in open_clip's tables.
"""

from typing import Any

from absl import flags

from clip_jax.commands import common_flags, printing
from clip_jax.errors import UsageError


def define_flags(values: flags.FlagValues) -> None:
  """Adds this verb's flags."""
  common_flags.define_model(values)
  flags.DEFINE_string(
    'preset', None, 'a published shape, such as ViT-B/32', flag_values=values
  )
  flags.DEFINE_bool(
    'all', False, 'a table of all published shapes', flag_values=values
  )
  common_flags.define_json(values)


def run(values: flags.FlagValues, words: list[str]) -> None:
  """Prints what is known."""
  printing.no_words('info', words)
  asked = [bool(values.model), bool(values.preset), values.all]
  if sum(asked) != 1:
    raise UsageError(
      'info needs one of --model=REF, --preset=NAME and --all, and only one.'
    )
  if values.preset:
    facts = _of_preset(values.preset)
  elif values.all:
    from clip_jax.models import presets

    facts = [_of_preset(name) for name in presets.PRESETS]
  else:
    facts = _of_model(values.model)
  if values.json:
    printing.print_json(facts)
  elif isinstance(facts, list):
    _print_table(facts)
  else:
    _print_one(facts)


def _of_preset(name: str) -> dict[str, Any]:
  from clip_jax.models import presets

  config = presets.resolve(name)
  return {
    'name': name,
    **_of_config(config),
    'origin': 'Radford et al. 2021, arXiv 2103.00020, tables 19 and 20',
  }


def _of_model(reference: str) -> dict[str, Any]:
  from clip_jax.inference.model import load

  model = load(reference)
  tokenizer = model.description.tokenizer
  return {
    'name': reference,
    **_of_config(model.config),
    'step': model.step,
    'logit_scale': round(model.logit_scale, 4),
    'tokenizer': tokenizer.get('kind'),
    'preprocessing': model.preprocessing.to_dict(),
  }


def _of_config(config: Any) -> dict[str, Any]:
  from clip_jax.models import counting, flops

  count = counting.count_parameters(config)
  return {
    'parameters': count.total,
    'image_parameters': count.image,
    'text_parameters': count.text,
    'gflops_per_image': flops.image_flops(config) / 1e9,
    'gflops_per_text': flops.text_flops(config) / 1e9,
    'image_size': config.image.image_size,
    'patches': config.image.patches,
    'context_length': config.text.context_length,
    'vocab_size': config.text.vocab_size,
    'embed_dim': config.embed_dim,
    'config': config.to_dict(),
  }


def _print_one(facts: dict[str, Any]) -> None:
  image, text = facts['config']['image'], facts['config']['text']
  rows = [
    ('', 'image', 'text'),
    (
      'parameters',
      f'{facts["image_parameters"]:,}',
      f'{facts["text_parameters"]:,}',
    ),
    ('share', *(_share(facts, tower) for tower in ('image', 'text'))),
    (
      'GFLOPs each',
      _round(facts['gflops_per_image']),
      _round(facts['gflops_per_text']),
    ),
    (
      'input',
      f'{image["image_size"]} x {image["image_size"]} px',
      f'{text["context_length"]} tokens',
    ),
    (
      'read as',
      f'{facts["patches"]:,} patches of {image["patch_size"]} px',
      f'{text["vocab_size"]:,} ids',
    ),
    ('blocks', str(image['depth']), str(text['depth'])),
    ('width', f'{image["width"]:,}', f'{text["width"]:,}'),
    ('heads', str(image['heads']), str(text['heads'])),
    ('activation', image['activation'], text['activation']),
  ]
  print(f'{facts["name"]}: {facts["parameters"]:,} parameters')
  print(f'joint space: {facts["embed_dim"]} dimensions')
  if 'step' in facts:
    print(
      f'trained to step {facts["step"]:,}, logit scale '
      f'{facts["logit_scale"]:.2f}, tokenizer {facts["tokenizer"]}'
    )
  if 'origin' in facts:
    print(f'shapes: {facts["origin"]}')
  print()
  print(aligned(rows))


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
  print(aligned(rows))


def aligned(rows: list[tuple[str, ...]]) -> str:
  """Rows as lines; the first column to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
    '  '.join(
      cell.rjust(width) if i else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  )


def _share(facts: dict[str, Any], tower: str) -> str:
  return f'{100 * facts[f"{tower}_parameters"] / facts["parameters"]:.1f} %'


def _round(gflops: float) -> str:
  return f'{gflops:,.2f}' if gflops >= 0.1 else f'{gflops:.2g}'
