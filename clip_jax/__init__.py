"""CLIP in JAX, from image-text pairs to a model in use.

The public names are `load`, `Model`, `presets` and `tokenizers`. Each is
imported when it is first asked for, so that `import clip_jax` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from clip_jax import tokenizers
  from clip_jax.inference.loading import load
  from clip_jax.inference.model import Model
  from clip_jax.models import presets

__all__ = ['Model', 'load', 'presets', 'tokenizers']

# A public name: its module, and the attribute there (none: the module itself).
_HOMES = {
  'Model': ('clip_jax.inference.model', 'Model'),
  'load': ('clip_jax.inference.loading', 'load'),
  'presets': ('clip_jax.models.presets', None),
  'tokenizers': ('clip_jax.tokenizers', None),
}


def __getattr__(name: str) -> Any:
  if name == '__version__':
    value = _version()
  elif name in _HOMES:
    module, attribute = _HOMES[name]
    value = importlib.import_module(module)
    if attribute is not None:
      value = getattr(value, attribute)
  else:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return sorted([*globals(), *__all__, '__version__'])


def _version() -> str:
  from importlib import metadata

  try:
    return metadata.version('clip-in-jax')
  except metadata.PackageNotFoundError:  # a source tree that is not installed
    return '0+unknown'
