"""Training's fast way with JPEGs: the same crops as Pillow's, nearly."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from sklearn.datasets import load_sample_images

from clip_jax.data import decoding, fast_jpeg
from clip_jax.data.augment import Augmentation, augment
from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.examples import decoder_of
from clip_jax.data.fast_jpeg import ScaledImage
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.errors import UsageError
from tests.data.images import make_image
from tests.data.test_decoding import encoded, with_size

PREPROCESSING = Preprocessing(64, background='white', exif=True)
# Two photographs of 640 x 427.
PHOTOGRAPHS = [Image.fromarray(x) for x in load_sample_images().images]


def photograph(width, height, number=0, **options):
  """The JPEG of a photograph at another size."""
  options = {'quality': 90, 'subsampling': '4:2:0'} | options
  image = PHOTOGRAPHS[number].resize((width, height), Image.Resampling.BICUBIC)
  return encoded(image.convert(options.pop('mode', 'RGB')), 'JPEG', **options)


def views(data, preprocessing=PREPROCESSING, augmentation=None, seed=0):
  """The same view, fast and exact, and whether the fast way was taken."""
  augmentation = augmentation or Augmentation()
  pixels, images = [], []
  for decode in ('fast', 'exact'):
    images.append(decoder_of(decode, preprocessing, augmentation)(data))
    rng = np.random.default_rng(seed)
    pixels.append(augment(images[-1], preprocessing, augmentation, rng))
  assert isinstance(images[1], Image.Image)
  return *pixels, isinstance(images[0], ScaledImage)


def difference(fast, exact):
  return np.abs(fast.astype(int) - exact.astype(int))


@pytest.mark.parametrize('number', [0, 1])
@pytest.mark.parametrize(
  ('size', 'factor', 'mean', 'most'),
  [
    ((180, 150), 1, 0.2, 8),
    ((330, 220), 1, 0.6, 20),  # colours of 4:2:0 are repeated
    ((500, 375), 1, 0.6, 20),
    ((640, 427), 1, 0.6, 20),
    ((901, 601), 2, 1.5, 25),
    ((1501, 1201), 4, 1.5, 30),
    ((2999, 2401), 8, 1.6, 30),
  ],
)
def test_photographs_differ_less_than_by_another_filter(
  number, size, factor, mean, most
):
  preprocessing = Preprocessing(224)
  fast, exact, _ = views(photograph(*size, number), preprocessing)
  image = fast_jpeg.decode_scaled(photograph(*size, number), preprocessing, 1.0)
  assert image.factor == factor
  assert image.size == size
  # Bicubic differs from bilinear by 0.7 and 1.5, and by 20 to 28 at most.
  assert difference(fast, exact).mean() < mean
  assert difference(fast, exact).max() <= most


@settings(max_examples=40, deadline=None)
@given(
  width=st.one_of(st.integers(1, 40), st.integers(1, 800), st.just(3000)),
  height=st.one_of(st.integers(1, 40), st.integers(1, 800), st.just(2999)),
  quality=st.integers(20, 100),
  subsampling=st.sampled_from(['4:4:4', '4:2:2', '4:2:0']),
  progressive=st.booleans(),
  mode=st.sampled_from(['RGB', 'RGB', 'RGB', 'L', 'CMYK']),
  least=st.floats(0.05, 1.0),
  interpolation=st.sampled_from(['bicubic', 'bilinear', 'lanczos']),
  seed=st.integers(0, 99),
)
def test_any_jpeg_gives_a_view_close_to_pillows(
  width, height, quality, subsampling, progressive, mode, least, interpolation,
  seed,
):  # fmt: skip
  data = photograph(
    width, height, seed % 2, quality=quality, subsampling=subsampling,
    progressive=progressive, mode=mode,
  )  # fmt: skip
  preprocessing = Preprocessing(32, interpolation=interpolation)
  augmentation = Augmentation(crop_scale=(least, 1.0))
  fast, exact, scaled = views(data, preprocessing, augmentation, seed)
  assert fast.shape == (32, 32, 3) and fast.dtype == np.uint8
  if mode == 'RGB':
    assert scaled
    assert difference(fast, exact).mean() < 3.5
  else:
    np.testing.assert_array_equal(fast, exact)


@pytest.mark.parametrize('extra', [0, 1, 3, 5, 7])
@pytest.mark.parametrize('factor', [1, 2, 4, 8])
@pytest.mark.parametrize('down', [False, True])
def test_edges_are_where_pillow_has_them(factor, extra, down):
  """A row's sum tells the position of its edge to a hundredth of a pixel."""
  side = 64
  short = int(1.25 * side * factor) + extra
  width, height = (short, short + 2 * side) if down else (short * 2, short)
  values = np.zeros((height, width, 3), np.uint8)
  edge = (height if down else width) * 6 // 11
  values[(slice(edge, None) if down else np.s_[:, edge:])] = 200
  data = encoded(Image.fromarray(values), 'JPEG', quality=95, subsampling=0)
  for seed in range(4):
    fast, exact, scaled = views(data, seed=seed)
    assert scaled
    image = fast_jpeg.decode_scaled(data, PREPROCESSING, 1.0)
    assert image.factor == factor
    positions = [x.sum(axis=0 if down else 1) / 200 for x in (fast, exact)]
    # A shift by half a pixel of the decoded image would be 0.4.
    np.testing.assert_allclose(*positions, atol=0.06)
    ends = exact.sum((1, 2) if down else (0, 2))
    if ends[0] != ends[-1]:  # the edge is in the crop
      assert 0.5 < positions[0].mean() < 63.5


def test_a_gradient_keeps_its_levels():
  ramp = np.linspace(0, 255, 900)[None] * np.ones((700, 1))
  image = Image.fromarray(np.rint(ramp).astype(np.uint8)).convert('RGB')
  for side in (32, 64, 224, 448):
    fast, exact, _ = views(encoded(image, 'JPEG', quality=97),
                           Preprocessing(side))  # fmt: skip
    assert difference(fast, exact).max() <= 2


def turned(orientation):
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = orientation
  return exif


@pytest.mark.parametrize(
  'data',
  [
    encoded(make_image(1, 300, 200)),
    encoded(make_image(1, 300, 200), 'WEBP'),
    encoded(make_image(1, 300, 200).convert('P'), 'GIF'),
    photograph(300, 200, mode='L'),
    photograph(300, 200, mode='CMYK'),
    photograph(300, 200, exif=turned(6)),
    photograph(300, 200, exif=turned(2)),
    encoded(Image.new('I;16', (300, 200), 40_000)),
    encoded(PHOTOGRAPHS[0].convert('RGBA'), 'TIFF'),
  ],
)
def test_all_but_plain_colour_jpegs_are_as_they_were(data):
  fast, exact, scaled = views(data)
  assert not scaled
  np.testing.assert_array_equal(fast, exact)


def test_an_upright_photograph_is_fast_and_a_turned_one_if_exif_is_ignored():
  for exif, preprocessing in (
    (turned(1), PREPROCESSING),
    (turned(6), Preprocessing(64)),
  ):
    *_, scaled = views(photograph(300, 200, exif=exif), preprocessing)
    assert scaled


@pytest.mark.parametrize(
  ('augmentation', 'interpolation'),
  [
    (Augmentation(padding=0.1), 'bicubic'),
    (Augmentation(), 'nearest'),
    (Augmentation(), 'box'),
    (Augmentation(), 'hamming'),
  ],
)
def test_padding_and_filters_of_single_pixels_stay_pillows(
  augmentation, interpolation
):
  preprocessing = Preprocessing(64, interpolation=interpolation)
  fast, exact, scaled = views(photograph(300, 200), preprocessing, augmentation)
  assert not scaled
  np.testing.assert_array_equal(fast, exact)


def test_the_rest_of_augmentation_works_on_the_fast_crop():
  augmentation = Augmentation(
    crop_scale=(0.4, 0.9), rotate=10.0, brightness=0.2, blur=1.0, shade=0.2
  )
  fast, exact, scaled = views(photograph(500, 375), augmentation=augmentation)
  assert scaled
  assert difference(fast, exact).mean() < 1.5
  plain = Augmentation(plain=1.0, rotate=10.0)
  fast, exact, _ = views(photograph(500, 375), augmentation=plain)
  assert difference(fast, exact).mean() < 1.5


def outcome(decode, data):
  """The pixels of a view, or the error's message."""
  try:
    image = decode(data)
  except CorruptImageError as error:
    return str(error)
  rng = np.random.default_rng(0)
  return augment(image, PREPROCESSING, Augmentation(), rng)


def assert_same_outcome(data, mean):
  fast, exact = (
    outcome(decoder_of(name, PREPROCESSING, Augmentation()), data)
    for name in ('fast', 'exact')
  )
  if isinstance(exact, str) or isinstance(fast, str):
    assert fast == exact
  else:
    assert difference(fast, exact).mean() <= mean
  return exact


@pytest.mark.parametrize('progressive', [False, True])
def test_a_truncated_jpeg_is_as_corrupt_as_before(progressive):
  data = photograph(150, 100, progressive=progressive)
  refused = 0
  for length in range(0, len(data), 97):
    refused += isinstance(assert_same_outcome(data[:length], 1.0), str)
  assert refused > 10
  for cut in range(1, 12):  # the end's marker, and what is before it
    assert_same_outcome(data[:-cut], 1.0)


def test_flipped_bytes_end_as_they_did_before():
  rng = np.random.default_rng(3)
  data = photograph(90, 70, quality=60)
  for _ in range(150):
    flipped = bytearray(data)
    for position in rng.integers(2, len(data), rng.integers(1, 4)):
      flipped[position] = rng.integers(256)
    assert_same_outcome(bytes(flipped), 3.0)


def test_bytes_after_the_end_are_allowed_as_before():
  data = photograph(150, 100)
  assert_same_outcome(data + b'more', 1.0)
  assert_same_outcome(data + data, 1.0)


def test_too_large_a_jpeg_is_refused_before_it_is_decoded(monkeypatch):
  def decode_jpeg(*data, **options):
    pytest.fail('its pixels are read')

  monkeypatch.setattr('simplejpeg.decode_jpeg', decode_jpeg)
  for side in (16_000, 65_000):
    with pytest.raises(CorruptImageError, match='too large: '):
      fast_jpeg.decode_scaled(with_size('JPEG', side), PREPROCESSING, 1.0)


def test_a_jpeg_over_the_limit_is_decoded_smaller_by_pillow(monkeypatch):
  monkeypatch.delenv(decoding.LIMIT_VARIABLE, raising=False)
  monkeypatch.setattr(decoding, 'MAX_PIXELS', 40_000)
  monkeypatch.setattr(decoding, 'MAX_JPEG_PIXELS', 100_000)
  fast, exact, scaled = views(photograph(300, 200))
  assert not scaled
  np.testing.assert_array_equal(fast, exact)


def test_pillow_resizes_where_the_other_library_is_not_installed(monkeypatch):
  with_it, exact, _ = views(photograph(500, 375))
  monkeypatch.setattr(fast_jpeg, 'cykooz_resizer', None)
  without, _, scaled = views(photograph(500, 375))
  assert scaled
  assert difference(without, with_it).max() <= 6
  assert difference(without, exact).mean() < 2


@given(st.floats(0, 1e4), st.floats(1e-3, 1e4), st.integers(1, 20_000))
def test_a_box_never_reaches_over_the_edge(start, length, limit):
  start = min(start, limit - 1e-3)
  end = float(min(start + length, limit))
  length = fast_jpeg._length(start, end, limit)
  assert start + length <= limit
  assert length == pytest.approx(end - start, abs=1e-9)


def test_an_unknown_way_to_decode_is_a_usage_error():
  with pytest.raises(UsageError, match=r"data\.decode='quick': choose one"):
    decoder_of('quick', PREPROCESSING, Augmentation())


def test_the_libraries_are_loaded_by_fast_runs_alone():
  import subprocess
  import sys

  code = (
    'import sys; from clip_jax.data.examples import decoder_of; '
    'from clip_jax.data.augment import Augmentation; '
    'from clip_jax.data.preprocessing import Preprocessing; '
    'decoder_of(sys.argv[1], Preprocessing(8), Augmentation()); '
    'print("simplejpeg" in sys.modules)'
  )
  for decode, loaded in (('exact', 'False'), ('fast', 'True')):
    done = subprocess.run(
      [sys.executable, '-c', code, decode],
      capture_output=True,
      text=True,
      check=True,
      env=os.environ,
    )
    assert done.stdout.strip() == loaded
