"""Keeps features on disk: a model encodes each image once for all evaluations.

```
FOLDER/
  images/KEY/        the images of one source through one model
    manifest.json      everything that the rows depend on; KEY is its hash
    00000000.npz       a shard: features, ids, captions and labels
  texts/KEY/         the same of a list of texts
```

Shards are written atomically: an evaluation that was killed continues with the
missing ones, and a damaged one is computed again.

KEY depends on the parameters (a sample of each array), the shapes and
activations, the tokenizer, the preprocessing, the dtype, and the data
(`data_identity` says what of it); of texts on each of them. It does not depend
on the path of the model, nor on the batch size or the kind and number of
devices: these change the last bits of a feature only.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Float

from clip_jax.data.decoding import check_corrupt
from clip_jax.data.sources import Source
from clip_jax.evaluation.dataset import data_identity
from clip_jax.evaluation.features.extraction import (
  encode_image_shards,
  encode_text_shards,
  image_shards,
  join_features,
  text_shards,
)
from clip_jax.evaluation.types import Encoder, Features, Options
from clip_jax.inference.identity import model_identity
from clip_jax.inference.model import Model
from clip_jax.inference.shards import Shard, ShardStore
from clip_jax.parallel.distributed import is_first_process

VERSION = 4  # of the entries
# These fields tell people where a model came from, and are not in the key.
_NO_KEY = ('origin', 'step')

Notes = TypeVar('Notes')


@dataclasses.dataclass(frozen=True)
class ImageNotes:
  """The JSON of a shard's file, beside its arrays: see `Features`."""

  ids: list[str]
  captions: list[list[str]]
  label_sets: list[list[int]] | None
  difficult: list[list[int]] | None
  corrupt: dict[str, str]


@dataclasses.dataclass(frozen=True)
class TextNotes:
  """The texts of a shard."""

  texts: list[str]


def identity_of(model: Model, dtype: str) -> dict[str, Any]:
  """Returns what a model's features depend on, as JSON has it.

  Args:
    dtype: of the model's arithmetic.
  """
  description = model.description
  tokenizer = json.dumps(description.tokenizer, sort_keys=True, default=dict)
  return {
    'version': VERSION,
    **model_identity(model),
    'tokenizer': hashlib.sha256(tokenizer.encode()).hexdigest(),
    'preprocessing': description.preprocessing.to_dict(),
    'dtype': dtype,
  }


class FeatureCache:
  """The features of one model, below a folder.

  All processes have to make the same calls, and get the same rows; process 0
  writes. Shards that not all of them can read are computed again.

  Attributes:
    folder: where entries are kept, of any number of models.
  """

  def __init__(
    self, folder: Path, encoder: Encoder, identity: Mapping[str, Any]
  ):
    """Reads and writes nothing yet.

    Args:
      encoder: computes missing features.
      identity: tells this encoder from others; see `identity_of`.
    """
    self.folder = folder
    self._encoder = encoder
    self._identity = dict(identity)

  def images(self, source: Source, options: Options) -> Features:
    """Returns all readable images of a source, from disk where they are there.

    Args:
      options: `max_corrupt_records` (over the whole source), `progress`.
    Raises:
      FailureError: too many images are corrupt, a feature is not finite, or
        the disk cannot be written.
    """
    entry = _Entry(
      self.folder / 'images',
      {**self._identity, **data_identity(source)},
      ImageNotes,
      {
        'embeddings': (np.float32, 2),
        'pooled': (np.float32, 2),  # [N, 0] where it is not known
        'labels': (np.int64, 1),
      },
    )
    shards = image_shards(source)
    features: dict[int, Features] = {}
    for number, (notes, arrays) in entry.store.read_all(shards).items():
      if _is_whole(notes, arrays):
        features[number] = _to_features(notes, arrays)
    corrupt = {
      key: why for x in features.values() for key, why in x.corrupt.items()
    }
    check_corrupt(corrupt, options.max_corrupt_records, source.spec)
    missing = [shard for shard in shards if shard.number not in features]
    for shard, made in encode_image_shards(
      self._encoder, source, missing, options, corrupt, pooled=True
    ):
      entry.write(shard, *_from_features(made))
      features[shard.number] = made
    return join_features(source, [features[shard.number] for shard in shards])

  def texts(
    self, texts: Sequence[str], options: Options
  ) -> Float[np.ndarray, 'N E']:
    """Returns one row a text, from disk where they are there.

    Args:
      texts: at least one.
      options: `progress`.
    Raises:
      FailureError: a feature is not finite, or the disk cannot be written.
    """
    texts = list(texts)
    content = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    entry = _Entry(
      self.folder / 'texts',
      {**self._identity, 'texts': len(texts), 'content': content},
      TextNotes,
      {'embeddings': (np.float32, 2)},
    )
    shards = text_shards(texts)
    rows: dict[int, np.ndarray] = {}
    for number, (_, arrays) in entry.store.read_all(shards).items():
      if len(arrays['embeddings']) == len(shards[number]):
        rows[number] = arrays['embeddings']
    missing = [shard for shard in shards if shard.number not in rows]
    for shard, made in encode_text_shards(
      self._encoder, texts, missing, options
    ):
      notes = TextNotes(texts[shard.start : shard.stop])
      entry.write(shard, notes, {'embeddings': made})
      rows[shard.number] = made
    return np.concatenate([rows[shard.number] for shard in shards])


class _Entry(Generic[Notes]):
  """The shards of one source or list of texts.

  Attributes:
    store: its folder, which is named by all that the features depend on.
  """

  def __init__(
    self,
    folder: Path,
    about: dict[str, Any],
    notes: type[Notes],
    arrays: Mapping[str, tuple[type, int]],
  ):
    self._about = about
    hashed = {k: v for k, v in about.items() if k not in _NO_KEY}
    text = json.dumps(hashed, sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    self.store = ShardStore(folder / key, notes, arrays)

  def write(
    self, shard: Shard, notes: Notes, arrays: Mapping[str, np.ndarray]
  ) -> None:
    """Writes a shard; of several processes the first one does.

    Raises:
      FailureError: it cannot be written.
    """
    if not is_first_process():
      return
    if self.store.read_manifest() is None:
      self.store.write_manifest(self._about)
    self.store.write(shard, notes, arrays)


def _is_whole(notes: ImageNotes, arrays: Mapping[str, np.ndarray]) -> bool:
  """Returns whether a shard has a row of everything for each of its images."""
  columns = [notes.captions, notes.label_sets, notes.difficult]
  lengths = [len(x) for x in (*columns, *arrays.values()) if x is not None]
  return set(lengths) == {len(notes.ids)}


def _to_features(
  notes: ImageNotes, arrays: Mapping[str, np.ndarray]
) -> Features:
  pooled = arrays['pooled']
  return Features(
    **vars(notes),
    embeddings=arrays['embeddings'],
    labels=arrays['labels'],
    pooled=pooled if pooled.shape[1] else None,
  )


def _from_features(
  features: Features,
) -> tuple[ImageNotes, dict[str, np.ndarray]]:
  names = [field.name for field in dataclasses.fields(ImageNotes)]
  pooled = features.pooled
  if pooled is None:
    pooled = np.empty((len(features), 0), np.float32)
  return ImageNotes(**{name: getattr(features, name) for name in names}), {
    'embeddings': features.embeddings,
    'pooled': pooled,
    'labels': features.labels,
  }
