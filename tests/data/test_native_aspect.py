"""Images of native aspect become the patches of the published processor."""

import collections
import io
import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file

from clip_jax.data.augment import Augmentation, augment
from clip_jax.data.examples import SequenceLength
from clip_jax.data.fast_jpeg import decode_scaled
from clip_jax.data.images import as_input, fit_grid, preprocess
from clip_jax.data.pipeline import training_batches
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.data.sources import open_source
from clip_jax.errors import UsageError
from tests.data.images import make_image
from tests.data.read_steps import Characters
from tests.golden_models import GOLDENS

FOLDER = GOLDENS / 'hf_siglip2'
NATIVE = Preprocessing.native(
  4, 20, interpolation='bilinear', convention='transformers'
)
SIDES = st.integers(1, 3000)


def test_grids_are_those_of_transformers():
  for height, width, size, most, *grid in json.loads(
    (FOLDER / 'grids.json').read_text()
  ):
    assert list(fit_grid(height, width, size, most)) == grid


@given(SIDES, SIDES, st.integers(1, 32), st.integers(1, 1024))
def test_a_grid_is_within_the_length_and_near_the_aspect(
  height, width, size, most
):
  rows, columns = fit_grid(height, width, size, most)
  assert 1 <= rows * columns <= most
  # Both sides are rounded up from one scale, so that they lie within a patch.
  scale = min(rows / height, columns / width)
  assert rows <= 1 + scale * height + 1e-6 or columns == 1 or rows == 1
  assert columns <= 1 + scale * width + 1e-6 or columns == 1 or rows == 1


def test_patches_are_those_of_transformers_to_the_byte():
  inputs = load_file(FOLDER / 'inputs.safetensors')
  for i, values in enumerate(inputs['pixel_values']):
    pixels = preprocess(inputs[f'raw_image_{i}'], NATIVE)
    patches = as_input(pixels, NATIVE)
    mask = inputs['pixel_attention_mask'][i]
    wanted = np.rint((values * 0.5 + 0.5) * 255)[mask == 1]
    flat = patches.pixels.reshape(20, -1)
    np.testing.assert_array_equal(flat[mask == 1], wanted)
    assert not flat[mask == 0].any()
    np.testing.assert_array_equal(patches.grid, inputs['spatial_shapes'][i])


def test_native_aspect_travels_as_json_and_squares_stay_as_they_were():
  data = json.loads(json.dumps(NATIVE.to_dict()))
  assert Preprocessing.from_dict(data) == NATIVE
  assert NATIVE.image_size == 16  # the largest square: 4 x 4 patches
  assert NATIVE.of_size(16) == NATIVE
  assert NATIVE.of_size(33).max_patches == 64
  assert 'max_patches' not in Preprocessing(16).to_dict()
  listed = Preprocessing.native(4, 20, mean=[0.5, 0.5, 0.5])
  assert listed.mean == (0.5, 0.5, 0.5)
  with pytest.raises(UsageError, match='have no side'):
    _ = NATIVE.side
  with pytest.raises(UsageError, match='smaller than a patch'):
    NATIVE.of_size(3)


@pytest.mark.parametrize(
  'fields',
  [
    dict(image_size=16, resize_mode='native'),
    dict(image_size=16, patch_size=4, max_patches=16),
    dict(image_size=9, resize_mode='native', patch_size=4, max_patches=16),
    dict(image_size=16, resize_mode='native', patch_size=4, max_patches=-1),
    dict(image_size=16, resize_mode='native', patch_size=4.0, max_patches=16),
  ],
)
def test_fields_that_contradict_each_other_are_refused(fields):
  with pytest.raises(UsageError, match=r'native|whole number'):
    Preprocessing.from_dict(fields)


ALL_OPTIONS = Augmentation(
  crop_scale=(0.3, 1.0), rotate=20.0, brightness=0.3, blur=0.5, noise=5.0,
  bend=0.02, ink_mix=0.1, outline=0.3, sharpen=0.3, shade=0.4, gamma=0.3,
  erase=1.0,
)  # fmt: skip


@pytest.mark.parametrize('size', [(60, 24), (24, 60), (40, 40), (3, 90)])
@pytest.mark.parametrize('augmentation', [Augmentation(), ALL_OPTIONS])
def test_views_keep_the_aspect(size, augmentation):
  image = make_image(1, *size)
  view = augment(image, NATIVE, augmentation, np.random.default_rng(0))
  rows, columns = fit_grid(size[1], size[0], 4, 20)
  assert view.shape == (rows * 4, columns * 4, 3)


def test_without_a_crop_a_view_is_what_evaluation_sees():
  image = make_image(2, 50, 30)
  view = augment(image, NATIVE, Augmentation(), np.random.default_rng(0))
  np.testing.assert_array_equal(view, preprocess(image, NATIVE))


def test_photographs_that_are_decoded_smaller_stay_the_same_pictures():
  """4000 x 1000 pixels, of which an eighth is decoded."""
  smooth = np.random.default_rng(3).integers(0, 256, (8, 32, 3), np.uint8)
  image = Image.fromarray(smooth).resize((4000, 1000), Image.Resampling.BICUBIC)
  file = io.BytesIO()
  image.save(file, 'JPEG', quality=95)
  native = Preprocessing.native(8, 200, interpolation='bilinear')
  scaled = decode_scaled(file.getvalue(), native, least_area=1.0)
  assert scaled.factor == 8
  rng = np.random.default_rng(0)
  ours = augment(scaled, native, Augmentation(), rng)
  exact = preprocess(file.getvalue(), native)
  assert ours.shape == exact.shape == (56, 224, 3)
  assert np.abs(ours.astype(int) - exact).mean() < 2


LENGTHS = (6, 12, 20)


@pytest.fixture(scope='module')
def spec(tmp_path_factory):
  """A folder of pictures of several shapes, with captions."""
  folder = tmp_path_factory.mktemp('shapes')
  for i, size in enumerate(itertools.product((8, 30, 70), repeat=2)):
    make_image(i, *size).save(folder / f'{i}.png')
    (folder / f'{i}.txt').write_text(f'picture {i}')
  return f'folder:{folder}'


def batches(spec, **options):
  return training_batches(
    open_source(spec),
    tokenizer=Characters(),
    preprocessing=NATIVE,
    batch_size=6,
    seed=5,
    sequence_lengths=LENGTHS,
    **options,
  )


def test_each_step_draws_a_length_that_all_processes_share(spec):
  whole = list(itertools.islice(batches(spec), 12))
  lengths = [batch['image'].shape[1] for batch in whole]
  assert set(lengths) == set(LENGTHS)
  for batch in whole:
    assert batch['image'].shape == (6, batch['image'].shape[1], 4, 4, 3)
    assert batch['grid'].dtype == np.int32
    assert batch['grid'].prod(1).max() <= batch['image'].shape[1]
  parts = [batches(spec, process_index=i, process_count=2) for i in (0, 1)]
  resumed = batches(spec, start_step=7)
  for step, batch in enumerate(whole):
    halves = [next(part) for part in parts]
    for name in ('image', 'grid', 'tokens'):
      joined = np.concatenate([half[name] for half in halves])
      np.testing.assert_array_equal(joined, batch[name])
    if step >= 7:
      again = next(resumed)
      np.testing.assert_array_equal(again['image'], batch['image'])
      np.testing.assert_array_equal(again['grid'], batch['grid'])


def test_each_length_is_as_likely():
  drawn = SequenceLength(LENGTHS, 6, seed=5)
  counts = collections.Counter(drawn.of_step(step) for step in range(3000))
  assert all(900 < counts[length] < 1100 for length in LENGTHS)
  other = SequenceLength(LENGTHS, 6, seed=6)
  assert any(drawn.of_step(i) != other.of_step(i) for i in range(20))
