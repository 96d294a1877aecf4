"""Features on disk: a model meets each picture once, whatever is evaluated.

An entry is a folder named by all that its rows depend on: the model's
parameters and arithmetic, its preprocessing, and the pictures. It is made in
parts, each there whole or not at all, so that a killed evaluation goes on.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from clip_jax.data.sources import Source
from clip_jax.evaluation.features import Features

if TYPE_CHECKING:
  from collections.abc import Sequence

  from clip_jax.evaluation.encoder import Options
  from clip_jax.inference.model import Model


class FeatureCache:
  """The features of one model, below a folder."""

  def __init__(self, folder: Path, model: 'Model', dtype: str):
    self.folder = folder
    self._model = model
    self._dtype = dtype

  def images(self, source: Source, options: 'Options') -> Features:
    """All readable pictures; those that are not here yet are encoded."""
    raise NotImplementedError

  def texts(
    self, texts: 'Sequence[str]', options: 'Options'
  ) -> Float[np.ndarray, 'N E']:
    """One row a text."""
    raise NotImplementedError
