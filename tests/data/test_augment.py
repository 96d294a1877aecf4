import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from clip_jax.data.augment import Augmentation, add_noise, augment
from clip_jax.data.images import decode_rgb, preprocess
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.errors import UsageError
from tests.data.images import make_image

PREPROCESSING = Preprocessing(24)
IMAGE = make_image(7, 48, 48)
GREY = Image.new('RGB', (48, 48), (120, 120, 120))
COLOUR = Image.new('RGB', (48, 48), (200, 100, 50))

# Every operation alone, at a strength that is seen.
OPERATIONS = {
  'crop_scale': (0.3, 0.5),
  'padding': 0.3,
  'rotate': 40.0,
  'zoom': 0.5,
  'stretch': 0.5,
  'shear': 0.4,
  'shift': 0.3,
  'flip': 0.5,
  'brightness': 0.5,
  'channel_gain': 0.5,
  'contrast': 0.5,
  'saturation': 0.9,
  'grayscale': 0.5,
  'blur': 3.0,
  'noise': 20.0,
  'bend': 0.1,
  'ink_mix': 0.2,
  'ink_gain': 0.3,
  'fade': 0.5,
  'outline': 1.0,
  'sharpen': 1.0,
  'shade': 0.5,
  'gamma': 0.5,
  'erase': 0.5,
}


def view(image=IMAGE, seed=0, **strengths):
  """One augmented view; float32, so that differences have signs."""
  pixels = augment(
    decode_rgb(image, PREPROCESSING),
    PREPROCESSING,
    Augmentation(**strengths),
    np.random.default_rng(seed),
  )
  assert pixels.shape == (24, 24, 3)
  assert pixels.dtype == np.uint8
  return pixels.astype(np.float32)


def views(image=IMAGE, count=60, **strengths):
  """Views with seeds 0 to count - 1: [count, 24, 24, 3]."""
  return np.stack([view(image, seed, **strengths) for seed in range(count)])


def test_the_operations_are_all_of_them():
  fields = {field.name for field in dataclasses.fields(Augmentation)}
  assert set(OPERATIONS) == fields - {'fill', 'plain'}


def test_off_is_the_evaluation_transform():
  np.testing.assert_array_equal(view(), preprocess(IMAGE, PREPROCESSING))


@pytest.mark.parametrize('name', OPERATIONS)
def test_each_operation_does_something_of_its_seed_alone(name):
  strengths = {name: OPERATIONS[name]}
  first = views(count=8, **strengths)
  np.testing.assert_array_equal(first, views(count=8, **strengths))
  plain = preprocess(IMAGE, PREPROCESSING)
  assert (first != plain).any()
  assert len({x.tobytes() for x in first}) >= 2


def test_the_papers_crop_runs_along_the_longer_side():
  ramp = np.zeros((24, 96, 3), np.uint8)
  ramp[:] = np.arange(96, dtype=np.uint8)[None, :, None]
  left = views(ramp)[:, 0, 0, 0]
  assert left.min() < 5
  assert left.max() > 67
  for pixels in views(ramp, count=5):
    # 24 columns of the image as they are, or half a column aside.
    assert pixels[0, -1, 0] - pixels[0, 0, 0] == pytest.approx(23, abs=1)


def test_crop_scale_is_the_area_of_the_square():
  ramp = np.zeros((96, 96, 3), np.uint8)
  ramp[:] = 2 * np.arange(96, dtype=np.uint8)[None, :, None]
  result = views(ramp, crop_scale=(0.25, 0.5))
  spans = (result[:, 0, -2, 0] - result[:, 0, 1, 0]) / 2 * 24 / 21 / 96
  assert 0.45 < spans.min() < 0.55
  assert 0.66 < spans.max() < 0.75


def test_padding_shifts_and_shows_the_fill():
  red = views(GREY, padding=0.25, fill='red')
  filled = (red == [255, 0, 0]).all(-1)
  assert 0.05 < filled.mean() < 0.6
  small = views(GREY, padding=0.5, crop_scale=(4.0, 4.0), fill='red')
  np.testing.assert_array_equal(small, small[:1].repeat(60, 0))
  assert (small[0, 9:15, 9:15] == 120).all()
  assert (small[0, 0] == [255, 0, 0]).all()


def test_flip_is_a_mirror():
  mirrored = preprocess(IMAGE, PREPROCESSING)[:, ::-1]
  np.testing.assert_allclose(view(flip=1.0), mirrored, atol=1)
  result = (views(flip=0.3) == view()).all((1, 2, 3))
  assert 0.5 < result.mean() < 0.9


def spot(strengths, x, y, count=200):
  """Where a dark spot at (x, y), fractions from the centre, goes."""
  image = np.full((48, 48, 3), 255, np.uint8)
  column, row = int(24 + 48 * x), int(24 + 48 * y)
  image[row - 2 : row + 2, column - 2 : column + 2] = 0
  ink = 255 - views(image, count, **strengths)[..., 0]
  ink = ink * (ink > 20)
  axis = (np.arange(24) + 0.5) / 24 - 0.5
  weight = ink.sum((1, 2))
  return np.stack(
    [(ink.sum(1) @ axis) / weight, (ink.sum(2) @ axis) / weight], -1
  )  # count 2


def test_rotate_is_at_most_so_many_degrees():
  result = spot({'rotate': 30.0}, 0.25, 0.0)
  degrees = np.degrees(np.arctan2(result[:, 1], result[:, 0]))
  assert -32 < degrees.min() < -26
  assert 26 < degrees.max() < 32
  np.testing.assert_allclose(np.hypot(*result.T), 0.25, atol=0.02)


def test_zoom_is_at_most_this_factor_either_way():
  result = spot({'zoom': 0.5}, 0.25, 0.25)
  np.testing.assert_allclose(result[:, 0], result[:, 1], atol=0.01)
  assert result.max() == pytest.approx(0.375, abs=0.02)
  assert result.min() == pytest.approx(0.25 / 1.5, abs=0.02)


def test_stretch_keeps_the_area():
  result = spot({'stretch': 0.5}, 0.25, 0.25)
  np.testing.assert_allclose(result.prod(-1), 0.0625, atol=0.008)
  ratio = result[:, 0] / result[:, 1]
  assert ratio.max() == pytest.approx(1.5, abs=0.1)
  assert ratio.min() == pytest.approx(1 / 1.5, abs=0.1)


def test_shear_moves_across_by_depth():
  result = spot({'shear': 0.4}, 0.0, 0.25)
  np.testing.assert_allclose(result[:, 1], 0.25, atol=0.01)
  assert result[:, 0].max() == pytest.approx(0.1, abs=0.02)
  assert result[:, 0].min() == pytest.approx(-0.1, abs=0.02)


def test_shift_is_a_fraction_of_each_side():
  result = spot({'shift': 0.25}, 0.0, 0.0)
  for axis in (0, 1):
    assert result[:, axis].max() == pytest.approx(0.25, abs=0.03)
    assert result[:, axis].min() == pytest.approx(-0.25, abs=0.03)


def test_brightness_moves_all_channels_alike():
  ratios = views(COLOUR, brightness=0.25)[:, 5, 5] / [200, 100, 50]
  np.testing.assert_allclose(ratios, ratios[:, :1].repeat(3, 1), atol=0.02)
  assert 0.75 <= ratios.min() < 0.8 < 1.2 < ratios.max() <= 1.26


def test_channel_gain_moves_each_channel_by_itself():
  ratios = views(COLOUR, channel_gain=0.25)[:, 5, 5] / [200, 100, 50]
  assert (ratios.std(axis=0) > 0.1).all()
  assert (ratios.std(axis=1) > 0.02).mean() > 0.9
  assert 0.74 <= ratios.min() < ratios.max() <= 1.26


def test_contrast_turns_about_mid_grey():
  distance = np.array([200, 100, 50]) - 127.5
  result = (views(COLOUR, contrast=0.4)[:, 5, 5] - 127.5) / distance
  np.testing.assert_allclose(result, result[:, 2:].repeat(3, 1), atol=0.04)
  assert 0.58 < result.min() < 0.7 < 1.3 < result.max() < 1.42


def test_saturation_and_grayscale_keep_the_luma():
  luma = np.array([0.299, 0.587, 0.114])
  for strengths in ({'saturation': 0.3}, {'grayscale': 0.5}):
    result = views(COLOUR, **strengths)[:, 5, 5]
    np.testing.assert_allclose(result @ luma, luma @ [200, 100, 50], atol=1.5)
  grey = np.ptp(result, axis=-1) <= 1
  assert 0.3 < grey.mean() < 0.7
  np.testing.assert_array_equal(view(GREY, saturation=0.9), view(GREY))


def test_blur_smooths_without_moving_or_darkening():
  plain = view()
  result = views(count=20, blur=2.0)
  roughness = np.abs(np.diff(result, axis=2)).mean((1, 2, 3))
  assert roughness.max() <= np.abs(np.diff(plain, axis=1)).mean() + 1e-3
  assert roughness.min() < 0.5 * roughness.max()
  np.testing.assert_allclose(result.mean((1, 2, 3)), plain.mean(), atol=3)


def test_noise_is_measured_in_grey_levels():
  pixels = np.full((64, 64, 3), 120, np.uint8)
  noisy = add_noise(pixels, 10.0, np.random.default_rng(0)).astype(np.float32)
  assert noisy.std() == pytest.approx(10, rel=0.03)
  assert noisy.mean() == pytest.approx(120, abs=0.3)
  deviations = views(GREY, noise=10.0).std((1, 2, 3))
  assert deviations.min() < 2 < 8 < deviations.max() < 10.5


@pytest.mark.parametrize(
  'name',
  ['ink_mix', 'ink_gain', 'fade', 'outline', 'sharpen', 'shade', 'gamma'],
)
def test_style_leaves_white_paper_white(name):
  white = Image.new('RGB', (48, 48), 'white')
  assert (views(white, 20, **{name: OPERATIONS[name]}) == 255).all()


def test_fade_goes_part_of_the_way_to_grey():
  spread = np.ptp(views(COLOUR, fade=0.5)[:, 5, 5], axis=-1)
  assert 0.3 < (spread == 150).mean() < 0.7
  assert spread.min() < 30
  np.testing.assert_array_equal(view(GREY, fade=1.0), view(GREY))


def test_ink_gain_is_a_factor_of_all_ink():
  factor = (255 - views(GREY, 400, ink_gain=0.1)[:, 5, 5]) / 135
  np.testing.assert_allclose(factor, factor[:, :1].repeat(3, 1), atol=1e-6)
  assert np.log(factor).std() == pytest.approx(0.1, rel=0.15)


def test_gamma_is_a_power():
  result = np.log(views(GREY, gamma=0.5)[:, 5, 5] / 255) / np.log(120 / 255)
  assert 1 / 1.51 < result.min() < 0.75 < 1.35 < result.max() < 1.51


def test_shade_is_at_most_this_fraction_from_side_to_side():
  ink = (255 - views(GREY, 200, shade=0.4)[..., 0]) / 135
  assert 0.59 < ink.min() < 0.68 < 1.32 < ink.max() < 1.41
  np.testing.assert_allclose(ink.mean((1, 2)), 1, atol=0.01)


def test_bend_moves_a_spot_this_far():
  result = spot({'bend': 0.05}, 0.0, 0.0, 400)
  assert result.std() == pytest.approx(0.05, rel=0.2)


def test_an_unbent_mesh_is_the_affine_map():
  strengths = {'rotate': 20.0, 'zoom': 0.2, 'shear': 0.2, 'shift': 0.1}
  affine = views(count=20, **strengths)
  mesh = views(count=20, **strengths, bend=1e-9)
  # Rounding decides some pixels at the sheet's edge.
  assert (np.abs(affine - mesh).max(-1) > 1).mean() < 0.01


def test_erase_hides_a_rectangle():
  hidden = (views(GREY, erase=0.5, fill='white') != 120).any(-1)
  erased = hidden.any((1, 2))
  assert 0.3 < erased.mean() < 0.7
  for mask in hidden[erased]:
    high, wide = mask.any(1).sum(), mask.any(0).sum()
    assert mask.sum() == high * wide
    assert 3 <= min(high, wide) <= max(high, wide) <= 8


def test_other_modes_become_rgb():
  clear = Image.new('RGBA', (30, 20), (255, 0, 0, 0))
  white = dataclasses.replace(PREPROCESSING, background='white')
  pixels = augment(
    decode_rgb(clear, white), white, Augmentation(), np.random.default_rng(0)
  )
  assert (pixels == 255).all()
  assert view(Image.new('L', (30, 20), 9)).max() == 9


def test_survives_json():
  augmentation = Augmentation(crop_scale=(0.5, 0.9), rotate=3.0, fill='#102030')
  data = json.loads(json.dumps(augmentation.to_dict()))
  assert Augmentation.from_dict(data) == augmentation


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'crop_scale': (0.5, 1.2)}, r'least <= most <= 1, which'),
    ({'crop_scale': (0.9, 0.5)}, r'crop_scale=\(0.9, 0.5\)'),
    ({'crop_scale': (0.0, 0.5)}, r'0 < least'),
    ({'rotate': -1.0}, r'augment\.rotate=-1\.0: use 0'),
    ({'flip': 1.5}, r'augment\.flip=1\.5: use at most 1'),
    ({'fill': 'whitish'}, 'not a colour'),
    ({'rotation': 1.0}, r"no field 'rotation'.*rotate"),
  ],
)
def test_impossible_strengths(fields, message):
  with pytest.raises(UsageError, match=message):
    Augmentation.from_dict(fields)


def test_a_plain_image_gets_the_crop_and_nothing_else():
  crop = {'crop_scale': (0.5, 0.9)}
  plain = views(plain=1.0, noise=50.0, rotate=30.0, erase=1.0, **crop)
  np.testing.assert_array_equal(plain[0], view(seed=0, **crop))
  half = [
    (view(seed=i, plain=0.5, noise=50.0) == view(seed=i)).all()
    for i in range(60)
  ]
  assert 15 <= sum(half) <= 45
