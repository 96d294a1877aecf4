"""Which data it was: what tells one source of pictures from another."""

import hashlib
import json
import weakref
from typing import Any

import numpy as np

from clip_jax.data.images import CorruptImageError
from clip_jax.data.sources import Source

_SAMPLES = 64  # records read in full, evenly spaced
# Every evaluator asks for it. A source that is open does not change.
_known: weakref.WeakKeyDictionary[Source, dict[str, Any]] = (
  weakref.WeakKeyDictionary()
)


def data_identity(source: Source) -> dict[str, Any]:
  """What the features of a source depend on, as JSON has it.

  It notices another SPEC, number of records, or list of label names; any change
  in 64 records spread over the source (all of them, of fewer): bytes, id,
  captions, labels; and of folders and tables every change of an id, a label, a
  caption, or of a file's size or time (`Source.outline`). It does not notice
  that TFDS's records were changed in between without changing their number:
  a data set of TFDS has a version for that. Of one source it is found once:
  what changes on disk afterwards is noticed by one that is opened anew.
  """
  if source not in _known:
    _known[source] = _find(source)
  return _known[source]


def _find(source: Source) -> dict[str, Any]:
  outline = hashlib.sha256()
  lines = 0
  for line in source.outline():
    outline.update(line.encode('utf-8', 'surrogatepass') + b'\n')
    lines += 1
  return {
    'data': source.spec,
    'records': len(source),
    'label_names': _hash_of(list(source.label_names or ())),
    'outline': outline.hexdigest() if lines else None,
    'sample': _sample(source),
  }


def _sample(source: Source) -> str:
  digest = hashlib.sha256()
  last = max(len(source) - 1, 0)
  places = np.linspace(0, last, min(len(source), _SAMPLES)).round()
  for index in map(int, places):
    try:
      record = source[index]
    except CorruptImageError as error:
      digest.update(_hash_of([source.id(index), str(error)]).encode())
      continue
    known = {name: x for name, x in record.items() if name != 'image'}
    digest.update(_hash_of(known).encode())
    digest.update(hashlib.sha256(record['image']).digest())
  return digest.hexdigest()


def _hash_of(value: Any) -> str:
  text = json.dumps(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()
