"""Encodes images and texts, or takes their features from a cache.

Features are computed shard by shard with and without a cache, each shard
batched by itself, so that both ways give the same bits.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from clip_jax.data.preprocessing import Preprocessing
from clip_jax.data.reading import none_readable
from clip_jax.data.sources import Source
from clip_jax.errors import FailureError
from clip_jax.evaluation.types import (
  Encoder,
  Features,
  Options,
  PoolingEncoder,
)
from clip_jax.inference.classifier import check_finite
from clip_jax.inference.encode_shards import (
  EncodedShard,
  encode_shards,
  image_items,
)
from clip_jax.inference.shards import Shard, make_shards, records_of

SHARD_ROWS = 4096  # records a shard: the most that a killed job repeats


def image_shards(source: Source) -> list[Shard]:
  """Returns how the records of a source are divided."""
  return make_shards('image', len(source), SHARD_ROWS)


def text_shards(texts: Sequence[str]) -> list[Shard]:
  """Returns how texts are divided."""
  return make_shards('text', len(texts), SHARD_ROWS)


def may_overlap() -> bool:
  """Returns whether two calls of an encoder may compute at the same time.

  Programs that run on several devices have to start in the same order on each.
  """
  return jax.device_count() == 1


def read_features(
  encoder: Encoder, source: Source, options: Options, *, pooled: bool = False
) -> Features:
  """Returns all readable images of a source encoded, or from the cache.

  Args:
    options: `cache`, `max_corrupt_records`, `progress`.
    pooled: whether the features before the joint space are asked for, too. A
      cache has them all the same.
  Raises:
    FailureError: too many images are corrupt, or features are not finite.
  """
  if options.cache is not None:
    return options.cache.images(source, options)
  shards = image_shards(source)
  encoded = encode_image_shards(
    encoder, source, shards, options, {}, pooled=pooled
  )
  return join_features(source, [features for _, features in encoded])


def text_features(
  encoder: Encoder, texts: Sequence[str], options: Options
) -> Float[np.ndarray, 'N E']:
  """Returns unit-length rows, from the cache where there is one.

  Args:
    texts: at least one.
    options: `cache`, `progress`.
  Raises:
    FailureError: one is not finite.
  """
  if options.cache is not None:
    return options.cache.texts(texts, options)
  encoded = encode_text_shards(encoder, texts, text_shards(texts), options)
  return np.concatenate([rows for _, rows in encoded])


def encode_image_shards(
  encoder: Encoder,
  source: Source,
  shards: Sequence[Shard],
  options: Options,
  corrupt: Mapping[str, str],
  *,
  pooled: bool,
) -> Iterator[tuple[Shard, Features]]:
  """Yields shards of a source in their order.

  Args:
    shards: of `image_shards`; progress counts the others as done.
    options: `max_corrupt_records`, `progress`.
    corrupt: id to reason, of images of other shards that were left out.
    pooled: see `read_features`.
  Raises:
    FailureError: too many images are corrupt, or features are not finite.
  """
  # An encoder that somebody else brings may have no preprocessing.
  own = getattr(encoder, 'preprocessing', None)
  items = image_items(
    source,
    records_of(shards),
    corrupt,
    options.max_corrupt_records,
    preprocessing=own if isinstance(own, Preprocessing) else None,
  )
  done = len(source) - sum(map(len, shards))
  shown = options.progress(items, len(source), 'images', done=done)

  def encode(images: Iterable[Any]) -> dict[str, np.ndarray]:
    if not (pooled and isinstance(encoder, PoolingEncoder)):
      return {'embeddings': encoder.encode_image(images)}
    before, embeddings = encoder.encode_image_with_pooled(images)
    return {'embeddings': embeddings, 'pooled': before}

  with (
    contextlib.closing(items),
    contextlib.closing(
      encode_shards(encode, shards, iter(shown), overlap=may_overlap())
    ) as results,
  ):
    for result in results:
      yield result.shard, _features_of(result)


def encode_text_shards(
  encoder: Encoder,
  texts: Sequence[str],
  shards: Sequence[Shard],
  options: Options,
) -> Iterator[tuple[Shard, Float[np.ndarray, 'N E']]]:
  """Yields shards of some texts in their order.

  Args:
    shards: of `text_shards`; progress counts the others as done.
    options: `progress`.
  Raises:
    FailureError: a feature is not finite.
  """
  items = (texts[i] for i in records_of(shards))
  done = len(texts) - sum(map(len, shards))
  shown = iter(options.progress(items, len(texts), 'texts', done=done))
  for shard in shards:
    rows = encoder.encode_text(itertools.islice(shown, len(shard)))
    check_finite(rows, shard.kind)
    yield shard, rows


def join_features(source: Source, shards: Sequence[Features]) -> Features:
  """Returns all shards of a source as one, in their order.

  Raises:
    FailureError: no image could be read.
  """
  corrupt = {key: why for part in shards for key, why in part.corrupt.items()}
  parts = [part for part in shards if len(part)]
  if not parts:
    raise FailureError(none_readable(source.spec, corrupt))
  joined = concatenate_features(parts)
  return dataclasses.replace(joined, corrupt=corrupt)


def concatenate_features(parts: Sequence[Features]) -> Features:
  """Returns the features of all images of some parts, in order."""
  pooled = [part.pooled for part in parts if part.pooled is not None]
  return Features(
    np.concatenate([part.embeddings for part in parts]),
    [key for part in parts for key in part.ids],
    [texts for part in parts for texts in part.captions],
    np.concatenate([part.labels for part in parts]),
    _join_lists([part.label_sets for part in parts], parts),
    _join_lists([part.difficult for part in parts], parts),
    {key: why for part in parts for key, why in part.corrupt.items()},
    np.concatenate(pooled) if pooled else None,
  )


def _join_lists(
  lists: Sequence[list[list[int]] | None], parts: Sequence[Features]
) -> list[list[int]] | None:
  """Returns the lists of all images in one, where any shard has them."""
  if all(of_shard is None for of_shard in lists):
    return None
  return [
    labels
    for of_shard, part in zip(lists, parts, strict=True)
    for labels in of_shard or [[]] * len(part)
  ]


def _features_of(encoded: EncodedShard[dict[str, np.ndarray]]) -> Features:
  records = [item.record for item in encoded.items if item.record is not None]
  label_sets = difficult = None
  if any('labels' in record for record in records):
    label_sets = [record.get('labels', []) for record in records]
    difficult = [record.get('difficult', []) for record in records]
  return Features(
    encoded.features['embeddings'],
    ids=[record['id'] for record in records],
    captions=[record['caption'] for record in records],
    labels=np.array([record.get('label', -1) for record in records], np.int64),
    label_sets=label_sets,
    difficult=difficult,
    corrupt=encoded.corrupt,
    pooled=encoded.features.get('pooled'),
  )
