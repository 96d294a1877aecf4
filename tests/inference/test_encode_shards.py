"""Shards through an encoder: in order, and without a pause between them."""

import threading

import numpy as np
import pytest

from clip_jax.errors import FailureError
from clip_jax.inference.encode_shards import Item, encode_shards
from clip_jax.inference.shards import make_shards
from tests.waiting import PATIENCE

SHARDS = make_shards('image', 10, 4)


def items(count=10, unread=()):
  for i in range(count):
    yield Item(str(i), '', None if i in unread else i, 'bad' * (i in unread))


def encode(contents):
  return np.float32([[content, 1] for content in contents]).reshape(-1, 2)


def test_shards_come_in_order_with_their_own_rows():
  shards = list(encode_shards(encode, SHARDS, items(unread=(0, 5))))
  assert [shard.shard.number for shard in shards] == [0, 1, 2]
  assert [shard.features[:, 0].tolist() for shard in shards] == [
    [1, 2, 3], [4, 6, 7], [8, 9]
  ]  # fmt: skip
  assert [item.id for item in shards[0].items] == ['0', '1', '2', '3']
  assert shards[0].items[0].reason == 'bad'


def test_the_next_shard_is_read_while_the_last_is_encoded():
  next_is_read = threading.Event()

  def encode_slowly(contents):
    numbers = list(contents)
    if 4 in numbers:
      next_is_read.set()
    if 0 in numbers:  # the device is still at it
      assert next_is_read.wait(PATIENCE)
    return encode(numbers)

  assert len(list(encode_shards(encode_slowly, SHARDS, items()))) == 3


def test_the_next_shard_is_read_while_the_last_is_stored():
  third_is_read = threading.Event()

  def noting(contents):
    numbers = list(contents)
    if 8 in numbers:
      third_is_read.set()
    return encode(numbers)

  for encoded in encode_shards(noting, SHARDS, items()):
    if encoded.shard.number == 1:
      assert third_is_read.wait(PATIENCE)


def test_what_the_items_raise_comes_through():
  def broken():
    yield from items(5)
    raise FailureError('too many')

  shards = encode_shards(encode, SHARDS, broken())
  assert next(shards).shard.number == 0
  with pytest.raises(FailureError, match='too many'):
    next(shards)


def test_leaving_early_stops_the_reading():
  read = []

  def endless():
    for item in items(10**9):
      read.append(item)
      yield item

  shards = encode_shards(encode, make_shards('image', 10**6, 100), endless())
  next(shards)
  shards.close()  # returns, with its threads done
  assert len(read) <= 400


def test_an_embedding_that_is_no_number_is_refused():
  def broken(contents):
    return np.nan * encode(contents)

  with pytest.raises(FailureError, match='4 of 4 image embeddings'):
    list(encode_shards(broken, SHARDS, items()))
