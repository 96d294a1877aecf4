"""Features on disk: a model meets each picture once, whatever is evaluated.

```
FOLDER/
  images/KEY/        the pictures of one source through one model
    about.json         all that the rows depend on; KEY is its hash
    00000000.npz       a part: vectors, and what is known of each record
  texts/KEY/         the same of a list of texts
```

A part is there whole or not at all, so that an evaluation that was killed goes
on with the parts that are missing; one that is damaged is made again.

KEY depends on the parameters (a sample of each array), the shapes and
activations, the tokenizer, the preprocessing, the dtype, and the data
(`data_identity` says what of it); of texts on each of them. It does not depend
on where the model lies, and neither on the batch size, the kind and the number
of devices: these change the last bits of a feature only.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float

from clip_jax.data.sources import Source
from clip_jax.errors import FailureError, reason_of
from clip_jax.evaluation.data_identity import data_identity
from clip_jax.evaluation.features.encoding import (
  PictureNotes,
  encode_pictures,
  encode_texts,
  picture_parts,
  text_parts,
)
from clip_jax.evaluation.features.extraction import Features, joined
from clip_jax.evaluation.types import Encoder, Options
from clip_jax.files import replacing
from clip_jax.inference.bulk.parts import (
  Part,
  read_notes_as,
  read_vectors,
  write_part,
)
from clip_jax.inference.bulk.records import refuse_corrupt
from clip_jax.inference.fingerprint import fingerprint
from clip_jax.inference.model import Model

VERSION = 2  # of the entries
# Where the model came from is for people to read.
_NO_KEY = ('origin', 'step')

Notes = TypeVar('Notes')


@dataclasses.dataclass(frozen=True)
class TextNotes:
  """The texts of a part."""

  texts: list[str]


def identity_of(model: Model, dtype: str) -> dict[str, Any]:
  """What a model's features depend on, as JSON has it.

  Args:
    dtype: of the model's arithmetic.
  """
  description = model.description
  tokenizer = json.dumps(description.tokenizer, sort_keys=True, default=dict)
  return {
    'version': VERSION,
    'model': fingerprint(model.variables),
    'origin': model.origin,
    'step': model.step,
    'config': model.config.to_dict(),
    'tokenizer': hashlib.sha256(tokenizer.encode()).hexdigest(),
    'preprocessing': description.preprocessing.to_dict(),
    'dtype': dtype,
  }


class FeatureCache:
  """The features of one model, below a folder.

  Of several processes each has to call the same, and gets the same rows;
  process 0 writes. They go on with the parts that all of them can read.

  Attributes:
    folder: where entries are kept, of any number of models.
  """

  def __init__(
    self, folder: Path, encoder: Encoder, identity: Mapping[str, Any]
  ):
    """Touches nothing yet.

    Args:
      encoder: makes what is not here.
      identity: tells this encoder from others; see `identity_of`.
    """
    self.folder = folder
    self._encoder = encoder
    self._identity = dict(identity)

  def images(self, source: Source, options: Options) -> Features:
    """All readable pictures; those that are not here yet are encoded.

    Args:
      options: `max_corrupt_records` (over the whole source), `progress`.
    Raises:
      FailureError: too many pictures are corrupt, features are not finite, or
        the disk cannot be written.
    """
    about = {**self._identity, **data_identity(source)}
    entry = _Entry(self.folder / 'images', about, PictureNotes)
    parts = picture_parts(source)
    found = entry.read(parts)
    corrupt = {
      key: reason
      for notes, _ in found.values()
      for key, reason in notes.corrupt.items()
    }
    refuse_corrupt(source, corrupt, options.max_corrupt_records)
    missing = [part for part in parts if part.number not in found]
    for part, notes, vectors in encode_pictures(
      self._encoder, source, missing, options, corrupt
    ):
      entry.write(part, notes, vectors)
      found[part.number] = notes, vectors
    return joined(source, [found[part.number] for part in parts])

  def texts(
    self, texts: Sequence[str], options: Options
  ) -> Float[np.ndarray, 'N E']:
    """One row a text.

    Args:
      texts: at least one.
      options: `progress`.
    Raises:
      FailureError: a feature is not finite, or the disk cannot be written.
    """
    texts = list(texts)
    content = json.dumps(texts).encode()
    about = {
      **self._identity,
      'texts': len(texts),
      'content': hashlib.sha256(content).hexdigest(),
    }
    entry = _Entry(self.folder / 'texts', about, TextNotes)
    parts = text_parts(texts)
    found = entry.read(parts)
    missing = [part for part in parts if part.number not in found]
    for part, vectors in encode_texts(self._encoder, texts, missing, options):
      notes = TextNotes(texts[part.start : part.stop])
      entry.write(part, notes, vectors)
      found[part.number] = notes, vectors
    return np.concatenate([found[part.number][1] for part in parts])


class _Entry(Generic[Notes]):
  """The folder of one entry."""

  def __init__(self, folder: Path, about: Mapping[str, Any], kind: type[Notes]):
    self._about = about
    self._kind = kind
    hashed = {k: v for k, v in about.items() if k not in _NO_KEY}
    text = json.dumps(hashed, sort_keys=True)
    self.path = folder / hashlib.sha256(text.encode()).hexdigest()[:32]

  def read(
    self, parts: Sequence[Part]
  ) -> dict[int, tuple[Notes, Float[np.ndarray, 'N E']]]:
    """By their numbers, the parts that all processes have, whole."""
    found = {}
    for part in parts:
      try:
        notes = read_notes_as(self._kind, self.path, part)
        found[part.number] = notes, read_vectors(self.path, part)
      except (FailureError, OSError):  # damaged, or not there
        continue
    if jax.process_count() > 1:
      mine = np.array([part.number in found for part in parts])
      everywhere = multihost_utils.process_allgather(mine).all(axis=0)
      found = {n: x for n, x in found.items() if everywhere[n]}
    return found

  def write(self, part: Part, notes: Notes, vectors: np.ndarray) -> None:
    """Of several processes the first one does."""
    if jax.process_index():
      return
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      self._describe()
      write_part(self.path, part, notes, vectors)
    except OSError as error:
      reason = reason_of(error)
      raise FailureError(
        f'{self.path} could not be written: {reason}.'
      ) from error

  def _describe(self) -> None:
    path = self.path / 'about.json'
    if not path.exists():
      with replacing(path) as temporary:
        temporary.write_text(json.dumps(self._about, indent=2), 'utf-8')
