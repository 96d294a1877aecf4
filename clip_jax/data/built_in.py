"""The data sets that need nothing but this package: built on first use."""

import os
from collections.abc import Callable, Mapping
from types import MappingProxyType

from clip_jax.data.digits import build_digits
from clip_jax.data.emoji import build_emoji

# A name in TFDS -> builds it below a folder and returns where it is.
BUILT_IN: Mapping[str, Callable[[str | os.PathLike | None], str]] = (
  MappingProxyType({'emoji': build_emoji, 'digits': build_digits})
)
