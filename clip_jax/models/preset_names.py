"""The names that other libraries have for models of the preset table.

open_clip's `-quickgelu` is its config of that name with QuickGELU, which is how
OpenAI's models compute; the hub has ids. A name stands for a row only where the
model is the same: shapes, activation, and how images are preprocessed.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from clip_jax.errors import UsageError

QUICK = '-quickgelu'
_OPENAI = {  # open_clip's name of the shape -> OpenAI's model of it
  'ViT-B-32': 'ViT-B/32',
  'ViT-B-16': 'ViT-B/16',
  'ViT-L-14': 'ViT-L/14',
  'ViT-L-14-336': 'ViT-L/14@336',
}
_TRANSFORMERS = dict(convention='transformers')
_HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
_SIGLIP_2 = dict(interpolation='bilinear', **_TRANSFORMERS)
# Of native aspect, in at most as many patches as the square of 256 pixels that
# the positions are of.
_NAFLEX = dict(
  resize_mode='native', patch_size=16, max_patches=256, **_SIGLIP_2
)


@dataclasses.dataclass(frozen=True)
class Alias:
  """The row that a name stands for, and what differs from it.

  Attributes:
    row: a name of the table.
    activation: of both towers instead of the row's; None is the row's.
    preprocessing: fields instead of the row's.
  """

  row: str
  activation: str | None = None
  preprocessing: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _hub() -> dict[str, Alias]:
  """Returns ids of the hub; a SigLIP there brings its own preprocessing."""
  aliases = {
    'openai/clip-vit-base-patch32': Alias('ViT-B/32', None, _TRANSFORMERS),
    'openai/clip-vit-base-patch16': Alias('ViT-B/16', None, _TRANSFORMERS),
    'openai/clip-vit-large-patch14': Alias('ViT-L/14', None, _TRANSFORMERS),
    'openai/clip-vit-large-patch14-336': Alias(
      'ViT-L/14@336', None, _TRANSFORMERS
    ),
    'laion/CLIP-ViT-L-14-laion2B-s32B-b82K': Alias('ViT-L-14', None, _HALF),
    'google/siglip-base-patch16-256-multilingual': Alias(
      'ViT-B-16-SigLIP-i18n-256', None, _TRANSFORMERS
    ),
  }
  for row, trained in (
    ('ViT-B-32', ('laion2B-s34B-b79K', 'DataComp.XL-s13B-b90K')),
    ('ViT-B-16', ('laion2B-s34B-b88K', 'DataComp.XL-s13B-b90K')),
    ('ViT-L-14', ('DataComp.XL-s13B-b90K',)),
    ('ViT-H-14', ('laion2B-s32B-b79K',)),
    ('ViT-g-14', ('laion2B-s12B-b42K', 'laion2B-s34B-b88K')),
    ('ViT-bigG-14', ('laion2B-39B-b160k',)),
  ):
    aliases |= {f'laion/CLIP-{row}-{name}': Alias(row) for name in trained}
  for shape, patch, size, row in (
    ('base', 16, 224, 'ViT-B-16-SigLIP'),
    ('base', 16, 256, 'ViT-B-16-SigLIP-256'),
    ('base', 16, 384, 'ViT-B-16-SigLIP-384'),
    ('base', 16, 512, 'ViT-B-16-SigLIP-512'),
    ('large', 16, 256, 'ViT-L-16-SigLIP-256'),
    ('large', 16, 384, 'ViT-L-16-SigLIP-384'),
    ('so400m', 14, 224, 'ViT-SO400M-14-SigLIP'),
    ('so400m', 14, 384, 'ViT-SO400M-14-SigLIP-384'),
  ):
    aliases[f'google/siglip-{shape}-patch{patch}-{size}'] = Alias(
      row, None, _TRANSFORMERS
    )
  for shape, patch, size, row in (
    ('base', 32, 256, 'ViT-B-32-SigLIP2-256'),
    ('base', 16, 224, 'ViT-B-16-SigLIP2'),
    ('base', 16, 256, 'ViT-B-16-SigLIP2-256'),
    ('base', 16, 384, 'ViT-B-16-SigLIP2-384'),
    ('base', 16, 512, 'ViT-B-16-SigLIP2-512'),
    ('large', 16, 256, 'ViT-L-16-SigLIP2-256'),
    ('large', 16, 384, 'ViT-L-16-SigLIP2-384'),
    ('large', 16, 512, 'ViT-L-16-SigLIP2-512'),
    ('so400m', 14, 224, 'ViT-SO400M-14-SigLIP2'),
    ('so400m', 16, 256, 'ViT-SO400M-16-SigLIP2-256'),
    ('so400m', 16, 384, 'ViT-SO400M-16-SigLIP2-384'),
    ('so400m', 16, 512, 'ViT-SO400M-16-SigLIP2-512'),
    ('giant-opt', 16, 256, 'ViT-gopt-16-SigLIP2-256'),
    ('giant-opt', 16, 384, 'ViT-gopt-16-SigLIP2-384'),
  ):
    aliases[f'google/siglip2-{shape}-patch{patch}-{size}'] = Alias(
      row, None, _SIGLIP_2
    )
  for shape, row in (
    ('base', 'ViT-B-16-SigLIP2-256'),
    ('so400m', 'ViT-SO400M-16-SigLIP2-256'),
  ):
    aliases[f'google/siglip2-{shape}-patch16-naflex'] = Alias(
      row, None, _NAFLEX
    )
  return aliases


def _aliases(rows: Iterable[str]) -> dict[str, Alias]:
  """Returns every name besides the table's own."""
  aliases = {'ViT-L/14@336px': Alias('ViT-L/14@336'), **_hub()}
  for row in rows:
    if 'SigLIP' in row:
      aliases[f'timm/{row}'] = Alias(row)  # where open_clip publishes them
    elif row.startswith('RN') or '/' in row:
      aliases[f'{row}{QUICK}'] = Alias(row)
    elif row in _OPENAI:
      aliases[f'{row}{QUICK}'] = Alias(_OPENAI[row])
    else:
      aliases[f'{row}{QUICK}'] = Alias(row, activation='quick_gelu')
  return aliases


def resolve_name(name: str, rows: Mapping[str, str]) -> Alias:
  """Returns the row that a name stands for, in upper or lower case.

  Args:
    name: the name that a person or a file gives.
    rows: the names of the table, each with its description for suggestions.
  Raises:
    UsageError: the name is not known, or might be either of two.
  """
  known = {row: Alias(row) for row in rows} | _aliases(rows)
  asked = name.removeprefix('hf-hub:')
  if asked in known:
    return known[asked]
  # Elsewhere, a capital G is bigG.
  if asked.casefold().removesuffix(QUICK) in ('vit-g-14', 'vit-g/14'):
    raise UsageError(
      f'preset {name!r} might be ViT-g-14 or ViT-bigG-14, which some call '
      'ViT-G-14: say one of these two.'
    )
  alike = {known[x].row for x in known if x.casefold() == asked.casefold()}
  if len(alike) == 1:
    return next(v for x, v in known.items() if x.casefold() == asked.casefold())
  raise UsageError(
    f'no preset {name!r}; did you mean {_nearest(asked, rows)}? '
    '`clip-jax info --all` lists what is known; what open_clip, OpenAI and '
    'the hub call these will do as well.'
  )


def _nearest(name: str, rows: Mapping[str, str]) -> str:
  """Returns the row with the nearest name, and its twin of another library.

  Each comes with what tells them apart.
  """
  [near] = difflib.get_close_matches(name, rows, n=1, cutoff=0.0)
  twins = {**_OPENAI, **{theirs: ours for ours, theirs in _OPENAI.items()}}
  offered = [near, *([twins[near]] if near in twins else [])]
  return ' or '.join(f'{row!r} ({rows[row]})' for row in offered)
