"""Parts through an encoder: in order, and without a pause between them."""

import threading

import numpy as np
import pytest

from clip_jax.errors import FailureError
from clip_jax.inference.bulk.encode import Item, encode_parts
from clip_jax.inference.bulk.parts import Plan
from tests.waiting import PATIENCE

PLAN = Plan(images=10, texts=0, part_rows=4)


def items(count=10, unread=()):
  for i in range(count):
    yield Item(str(i), '', None if i in unread else i, 'bad' * (i in unread))


def encode(contents):
  return np.float32([[content, 1] for content in contents]).reshape(-1, 2)


def test_parts_come_in_order_with_their_own_rows():
  parts = list(encode_parts(encode, PLAN, items(unread=(0, 5))))
  assert [part.part.number for part in parts] == [0, 1, 2]
  assert [part.vectors[:, 0].tolist() for part in parts] == [
    [1, 2, 3], [4, 6, 7], [8, 9]
  ]  # fmt: skip
  assert [item.id for item in parts[0].items] == ['0', '1', '2', '3']
  assert parts[0].items[0].reason == 'bad'


def test_the_next_part_is_read_while_the_last_is_encoded():
  next_is_read = threading.Event()

  def encode_slowly(contents):
    numbers = list(contents)
    if 4 in numbers:
      next_is_read.set()
    if 0 in numbers:  # the device is still at it
      assert next_is_read.wait(PATIENCE)
    return encode(numbers)

  assert len(list(encode_parts(encode_slowly, PLAN, items()))) == 3


def test_the_next_part_is_read_while_the_last_is_stored():
  third_is_read = threading.Event()

  def noting(contents):
    numbers = list(contents)
    if 8 in numbers:
      third_is_read.set()
    return encode(numbers)

  for encoded in encode_parts(noting, PLAN, items()):
    if encoded.part.number == 1:
      assert third_is_read.wait(PATIENCE)


def test_what_the_items_raise_comes_through():
  def broken():
    yield from items(5)
    raise FailureError('too many')

  parts = encode_parts(encode, PLAN, broken())
  assert next(parts).part.number == 0
  with pytest.raises(FailureError, match='too many'):
    next(parts)


def test_leaving_early_stops_the_reading():
  read = []

  def endless():
    for item in items(10**9):
      read.append(item)
      yield item

  parts = encode_parts(encode, Plan(10**9, 0, 100), endless())
  next(parts)
  parts.close()  # returns, with its threads done
  assert len(read) <= 400


def test_an_embedding_that_is_no_number_is_refused():
  def broken(contents):
    return np.nan * encode(contents)

  with pytest.raises(FailureError, match='4 of 4 image embeddings'):
    list(encode_parts(broken, PLAN, items()))


@pytest.mark.parametrize('images, texts', [(0, 0), (1, 0), (4, 4), (9, 13)])
def test_a_plan_covers_every_record_once(images, texts):
  plan = Plan(images, texts, part_rows=4)
  parts = list(plan)
  assert [part.number for part in parts] == list(range(len(plan)))
  for kind, count in (('image', images), ('text', texts)):
    records = [
      i for part in parts if part.kind == kind
      for i in range(part.start, part.stop)
    ]  # fmt: skip
    assert records == list(range(count))
  assert all(0 < len(part) <= 4 for part in parts)
