"""Small image files for tests."""

import pathlib

import numpy as np
from PIL import Image


def make_image(seed: int, width: int = 24, height: int = 24) -> Image.Image:
  """Random pixels, in patches of four so that resizing keeps something."""
  rng = np.random.default_rng(seed)
  small = rng.integers(0, 256, (-(-height // 4), -(-width // 4), 3), np.uint8)
  large = small.repeat(4, axis=0).repeat(4, axis=1)[:height, :width]
  return Image.fromarray(large)


def write_images(folder: pathlib.Path, names: list[str]) -> None:
  """One PNG a name, each another image; sub-folders are made."""
  for seed, name in enumerate(names):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    make_image(seed).save(path)


def captioned_folder(folder: pathlib.Path, count: int) -> pathlib.Path:
  """`count` images 000.png with captions 'picture 000' beside them."""
  write_images(folder, [f'{i:03}.png' for i in range(count)])
  for i in range(count):
    (folder / f'{i:03}.txt').write_text(f'picture {i:03}\n')
  return folder
