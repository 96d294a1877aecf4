"""Placeholder until the branch `tokens` lands."""

from pathlib import Path
from typing import Any

from clip_jax.data.images import Preprocessing


def from_hugging_face(directory: Path, size: int) -> Preprocessing:
  return Preprocessing(image_size=size)


def from_open_clip(
  fields: dict[str, Any], size: int, where: str
) -> Preprocessing:
  return Preprocessing(image_size=size)
