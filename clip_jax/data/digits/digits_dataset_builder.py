"""TFDS builder of scikit-learn's handwritten digits."""

import hashlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float, Int
from PIL import Image
from sklearn.datasets import load_digits

NAMES = (
  'zero', 'one', 'two', 'three', 'four',
  'five', 'six', 'seven', 'eight', 'nine',
)  # fmt: skip

SIDE = 32  # pixels; four of them a side for one of the original
INK = 16  # the brightest value of the original
HELD_OUT_EVERY = 5  # one in so many of each class is `test`


class Builder(tfds.core.GeneratorBasedBuilder):
  """Digits, in two splits of equal class proportions (see README.md)."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First release.'}  # noqa: RUF012

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          'id': tfds.features.Text(doc="The index in scikit-learn's array."),
          'image': tfds.features.Image(
            shape=(SIDE, SIDE, 3), encoding_format='png', doc='White on black.'
          ),
          'label': tfds.features.ClassLabel(names=NAMES),
        }
      ),
      supervised_keys=('image', 'label'),
      homepage='https://archive.ics.uci.edu/dataset/80',
      license='CC-BY 4.0',
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # Everything is in an installed package.
    digits: Any = load_digits()
    tests = held_out(digits.target)
    return {
      'train': self._generate_examples(digits, ~tests),
      'test': self._generate_examples(digits, tests),
    }

  def _generate_examples(
    self, digits: Any, chosen: np.ndarray
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for index in np.flatnonzero(chosen).tolist():
      yield (
        index,
        {
          'id': str(index),
          'image': io.BytesIO(enlarge(digits.images[index])),
          'label': NAMES[digits.target[index]],
        },
      )


def held_out(labels: Int[np.ndarray, ' N']) -> np.ndarray:
  """Returns which images are `test`: a fifth of each class, by their hash.

  Returns:
    bool [N]; the same for ever, since an index is hashed by itself.
  """
  digests = np.array(
    [
      int(hashlib.sha256(str(index).encode()).hexdigest()[:8], 16)
      for index in range(len(labels))
    ]
  )
  tests = np.zeros(len(labels), bool)
  for label in np.unique(labels):
    rows = np.flatnonzero(labels == label)
    count = round(len(rows) / HELD_OUT_EVERY)
    tests[rows[np.argsort(digests[rows])[:count]]] = True
  return tests


def enlarge(ink: Float[np.ndarray, '8 8']) -> bytes:
  """Returns an 8 x 8 image of ink, 0 to 16, as an RGB PNG of 32 x 32."""
  grey = np.round(ink * (255 / INK)).astype(np.uint8)
  image = Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.NEAREST)
  encoded = io.BytesIO()
  image.convert('RGB').save(encoded, 'PNG')
  return encoded.getvalue()
