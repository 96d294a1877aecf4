"""Augmented views of a record that can be made again, by any process.

With always new views, what another model says of a view cannot be stored. So a
record has K of them, each a function of a seed, the record's id and its number
alone: `clip-jax embed --config=…` makes all of them for a teacher, and training
draws one and makes that again (MobileCLIP, arXiv 2311.17049, section 3).
"""

import dataclasses
import hashlib

import numpy as np

from clip_jax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Views:
  """The views of each record.

  Attributes:
    count: K.
    seed: from 0.
  """

  count: int
  seed: int

  def __post_init__(self):
    if self.count < 1 or self.seed < 0:
      raise UsageError(
        f'data.views={self.count} and data.view_seed={self.seed}: use at least '
        'one view, and a seed from 0; without both, all views are new.'
      )

  def generator(self, record_id: str, view: int) -> np.random.Generator:
    """Returns what the augmentation of a view is drawn from.

    Args:
      view: from 0 to K - 1.
    """
    name = record_id.encode('utf-8', 'surrogatepass')
    digest = hashlib.blake2b(name, digest_size=16).digest()
    words = np.frombuffer(digest, '<u4').tolist()
    return np.random.default_rng([self.seed, view, *words])
