"""Pairs that are in a batch twice are counted."""

import math

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.data.examples import Repeats, count_repeats
from clip_jax.data.pipeline import training_batches
from clip_jax.data.sources import open_source
from tests.data.test_pipeline import PREPROCESSING, Digits, Numbers, batches
from tests.tiny import write_pairs


def counted(captions, images) -> Repeats:
  tokens = np.array([[x, 7] for x in captions], np.int32)
  return Repeats(*count_repeats(tokens, images).tolist())


def test_a_batch_by_hand():
  result = counted([1, 1, 1, 2, 3, 4], [10, 11, 12, 13, 13, 14])
  assert result[:4] == (6, 3, 2, 5)
  assert result.floor == pytest.approx(3 * math.log(3))
  assert counted([1, 2, 3], [4, 5, 6]) == (3, 0, 0, 0, 0.0)


@given(st.lists(st.integers(0, 5), min_size=2, max_size=12), st.integers(0, 99))
def test_the_softmax_loss_cannot_fall_below_the_floor(captions, seed):
  """Nor does it stay above: it is what the best model has."""
  floor = counted(captions, range(len(captions))).floor / len(captions)
  best = np.eye(6)[captions]
  images = best + 0.1 * np.random.default_rng(seed).normal(size=best.shape)
  for features, scale in ((images, 5.0), (best, 200.0)):
    logits = scale * features @ best.T
    right = np.diag(logits)
    loss = np.mean(
      [scipy.special.logsumexp(logits, axis) - right for axis in (0, 1)]
    )
    assert loss >= floor - 1e-6
  assert loss == pytest.approx(floor, abs=1e-6)


def test_the_stream_adds_up_what_it_gave():
  result, stream = batches(Numbers(5), 3, batch_size=8)
  assert all(batch.keys() == {'image', 'tokens'} for batch in result)
  assert stream.repeats.pairs == 24
  # Of five records eight are at least six that come twice.
  assert stream.repeats.images >= 18
  assert stream.repeats.images == stream.repeats.captions
  _, stream = batches(Numbers(40), 5, batch_size=8)
  assert stream.repeats.either == 0


@pytest.mark.parametrize(
  'workers', [0, pytest.param(1, marks=pytest.mark.slow)]
)
def test_copies_of_an_image_are_one_image(tmp_path, workers):
  spec = write_pairs(tmp_path, 8)
  (tmp_path / '001.png').write_bytes((tmp_path / '000.png').read_bytes())
  (tmp_path / '003.txt').write_text('picture number 2')
  with_cache = training_batches(
    open_source(spec),
    tokenizer=Digits(),
    preprocessing=PREPROCESSING,
    batch_size=8,
    seed=0,
    workers=workers,
    cache=True,
  )
  for _ in range(3):  # an epoch each
    next(with_cache)
  with_cache.close()
  assert with_cache.repeats[:4] == (24, 6, 6, 12)
