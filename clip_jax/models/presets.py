"""One table: a published name, and the shapes that it stands for.

CLIP paper, tables 19 and 20; vocabulary and context length as in OpenAI's
code. A recipe or a flag may override single fields (`resolve`).
"""

import difflib
from collections.abc import Mapping
from typing import Any

from clip_jax.errors import UsageError
from clip_jax.models.config import CLIPConfig

_BPE = dict(vocab_size=49_408, context_length=77, end_token=49_407)
_TEXT_512 = dict(width=512, depth=12, heads=8, **_BPE)
_TEXT_768 = dict(width=768, depth=12, heads=12, **_BPE)


def _vit(image_size, patch_size, width, depth, heads):
  return dict(
    image_size=image_size,
    patch_size=patch_size,
    width=width,
    depth=depth,
    heads=heads,
  )


def _clip(embed_dim, image, text):
  return dict(embed_dim=embed_dim, image=image, text=text)


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
  #                   embed_dim, image: size patch width depth heads, text
  'ViT-B/32':     _clip(512, _vit(224, 32,  768, 12, 12), _TEXT_512),
  'ViT-B/16':     _clip(512, _vit(224, 16,  768, 12, 12), _TEXT_512),
  'ViT-L/14':     _clip(768, _vit(224, 14, 1024, 24, 16), _TEXT_768),
  'ViT-L/14@336': _clip(768, _vit(336, 14, 1024, 24, 16), _TEXT_768),
}
# fmt: on


def resolve(
  preset: str | None, overrides: Mapping[str, Any] | None = None
) -> CLIPConfig:
  """The model of a preset, or of none, with single fields replaced.

  Args:
    preset: a name of `PRESETS`, or None where `overrides` says all.
    overrides: nested like `CLIPConfig.to_dict()`; None stands for "as the
      preset has it".
  Raises:
    UsageError: the name is not in the table, or a field is missing.
  """
  if preset and preset not in PRESETS:
    near = difflib.get_close_matches(preset, PRESETS, n=1, cutoff=0.0)
    raise UsageError(
      f'no preset {preset!r}; did you mean {near[0]!r}? '
      f'Known: {", ".join(PRESETS)}.'
    )
  fields = dict(PRESETS[preset]) if preset else {'image': {}, 'text': {}}
  overrides = _said(overrides or {})
  for tower in ('image', 'text'):
    fields[tower] = {**fields[tower], **overrides.pop(tower, {})}
  return CLIPConfig.from_dict({**fields, **overrides})


def _said(fields: Mapping[str, Any]) -> dict[str, Any]:
  """`fields` without those that are None."""
  nested = {
    key: _said(value) if isinstance(value, Mapping) else value
    for key, value in fields.items()
  }
  return {key: value for key, value in nested.items() if value is not None}
