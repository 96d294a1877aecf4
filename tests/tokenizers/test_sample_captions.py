"""Captions that a tokenizer is measured on: varied, and always the same."""

import collections

from clip_jax import tokenizers
from clip_jax.tokenizers.cleaning import in_order
from clip_jax.tokenizers.sample_captions import sample_captions


def test_the_same_seed_gives_the_same_captions():
  captions = sample_captions(50, seed=1)
  assert captions == sample_captions(50, seed=1) != sample_captions(50, seed=2)
  assert all(8 <= len(caption.split()) <= 20 for caption in captions)
  assert all(map(in_order, captions))
  assert tokenizers.load('clip')(captions).shape == (50, 77)


def test_words_are_many_and_unequally_frequent():
  words = collections.Counter(' '.join(sample_captions(2_000)).split())
  assert len(words) > 7_000
  assert words['the'] > 50 * words.most_common(2_000)[-1][1]
  once = sum(count == 1 for count in words.values())
  assert once > len(words) / 3
