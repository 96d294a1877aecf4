"""Scores pairs and finds copies and test images for `clip-jax data curate`.

A collection that a model is trained on, and then tested with, must not hold the
test images (paper, section 5): pairs are dropped whose image is the same file,
has a near perceptual hash, or a near embedding. A model scores pairs, and finds
copies among them.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from clip_jax.data import storage
from clip_jax.data.curation.arrays import write_array
from clip_jax.data.curation.image_checks import Look
from clip_jax.data.curation.requirements import Helpers
from clip_jax.data.curation.settings import Settings
from clip_jax.data.decoding import CorruptImageError, decode
from clip_jax.data.sources import open_source
from clip_jax.errors import FailureError
from clip_jax.evaluation.dataset import data_identity
from clip_jax.evaluation.near_duplicates.perceptual_hash import (
  BITS,
  hash_spectra,
  spectrum,
)
from clip_jax.inference.dedup import find_near_copies
from clip_jax.inference.identity import fingerprint
from clip_jax.inference.scores import PairScorer

_CHUNK = 256  # images that are hashed and embedded together


def curation_helpers(settings: Settings, scorer: PairScorer | None) -> Helpers:
  """Returns the functions that a curation needs, and data/ cannot import.

  Args:
    settings: of the curation.
    scorer: embeds images and texts; None where no model is given.
  """
  looks: list[Look] = []
  identity: dict[str, Any] = {}
  width = 0
  if scorer is not None:
    reference, scorer = scorer.reference, scorer.pinned()
    model = scorer.model()
    width = model.config.embed_dim
    looks.append(scorer)
    identity['model'] = {
      'reference': reference,
      'options': scorer.options,
      'step': model.step,
      'fingerprint': fingerprint(model.params),
    }
  if settings.evaluation_bits is not None:
    looks.append(hash_contents)
  if settings.evaluation:
    identity['evaluation_content'] = [
      data_identity(open_source(spec)) for spec in settings.evaluation
    ]
  written = {
    'digests': bool(settings.evaluation),
    'hashes': settings.evaluation_bits is not None,
    'embeddings': bool(settings.evaluation_near),
  }
  return Helpers(
    looks=tuple(looks),
    identity=identity,
    scores=scorer is not None,
    width=width,
    find_copies=find_near_copies if settings.near is not None else None,
    evaluation=tuple(
      name for name, is_written in written.items() if is_written
    ),
    write_evaluation=functools.partial(
      write_evaluation,
      settings.evaluation,
      written['hashes'],
      scorer.embed if scorer and written['embeddings'] else None,
    )
    if settings.evaluation
    else None,
  )


def hash_contents(
  contents: Sequence[bytes], texts: Sequence[str]
) -> Mapping[str, np.ndarray]:
  """Returns the perceptual hashes of N encoded images; see `image_checks.Look`.

  Returns:
    `hash`, uint64 [N], and `flat`, of images without texture: those, and those
    that cannot be hashed, are compared with none.
  """
  del texts
  spectra = []
  for content in contents:
    try:
      spectra.append(spectrum(decode(content)))
    except CorruptImageError:
      spectra.append(np.zeros(BITS))
  hashes = hash_spectra(spectra)
  return {'hash': hashes.bits, 'flat': hashes.flat}


def write_evaluation(
  specs: Sequence[str],
  with_hashes: bool,
  embed: Callable[[Sequence[bytes]], np.ndarray] | None,
  folder: str,
) -> dict[str, str]:
  """Writes digests, hashes and embeddings of the images of data sets.

  Args:
    specs: of the data sets.
    with_hashes: whether perceptual hashes are written.
    embed: makes embeddings of encoded images, or None.
    folder: local or remote; gets `evaluation_digests.npy` (the first halves of
      SHA-256, sorted), `evaluation_hashes.npy` and `evaluation_embeddings.npy`.
  Returns:
    The images that cannot be decoded, and the reasons. Of these there are
    digests alone, unless they cannot be read either.
  Raises:
    FailureError: a data set has no image that can be read.
  """
  digests: list[bytes] = []
  hashes: list[np.ndarray] = []
  vectors: list[np.ndarray] = []
  corrupt: dict[str, str] = {}
  for spec in specs:
    readable = 0
    for contents in _contents_of(spec, digests, corrupt):
      readable += len(contents)
      if with_hashes:
        looks = hash_contents(contents, ())
        hashes.append(looks['hash'][~looks['flat']])
      if embed is not None:
        vectors.append(embed(contents))
    if not readable:
      raise FailureError(f'--evaluation={spec}: no image can be read.')
  halves = np.frombuffer(b''.join(digests), '<u8,<u8')
  order = np.lexsort((halves['f1'], halves['f0']))
  arrays = {'digests': halves[order]}
  if with_hashes:
    arrays['hashes'] = np.unique(np.concatenate(hashes))
  if embed is not None:
    arrays['embeddings'] = np.concatenate(vectors)
  for name, values in arrays.items():
    write_array(values, storage.join(folder, f'evaluation_{name}.npy'))
  return corrupt


def _contents_of(
  spec: str, digests: list[bytes], corrupt: dict[str, str]
) -> Iterator[list[bytes]]:
  """Yields the encoded images of a data set that can be decoded.

  Args:
    digests: gets the first half of the SHA-256 of each image, of the others,
      too.
    corrupt: gets the others, and the reasons.
  """
  source = open_source(spec)
  contents: list[bytes] = []
  for index in range(len(source)):
    try:
      content = source[index]['image']
      digests.append(hashlib.sha256(content).digest()[:16])
      decode(content)
    except CorruptImageError as error:
      corrupt[f'--evaluation={spec}, {source.id(index)}'] = str(error)
      continue
    contents.append(content)
    if len(contents) == _CHUNK:
      yield contents
      contents = []
  if contents:
    yield contents
