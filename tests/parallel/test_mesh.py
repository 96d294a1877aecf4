"""The device grid and the sizes that it accepts."""

import re

import jax
import pytest

from clip_jax.errors import UsageError
from clip_jax.parallel.mesh import (
  batch_shard_count,
  check_batch_size,
  make_mesh,
)


@pytest.mark.parametrize(
  'sizes, expected',
  [
    ((-1, 1, 1), (8, 1, 1)),
    ((-1, 2, 2), (2, 2, 2)),
    ((2, -1, 1), (2, 4, 1)),
    ((8, 1, -1), (8, 1, 1)),
    ((1, 4, 2), (1, 4, 2)),
  ],
)
def test_sizes_multiply_to_the_devices(sizes, expected):
  mesh = make_mesh(*sizes)
  assert tuple(mesh.shape.values()) == (1, *expected)
  assert mesh.axis_names == ('slice', 'data', 'fsdp', 'tensor')
  assert batch_shard_count(mesh) == expected[0] * expected[1]


@pytest.mark.parametrize(
  'sizes, message',
  [
    ((3, 1, 1), 'does not fit 8 devices'),
    ((-1, 3, 1), 'does not fit 8 devices'),
    ((-1, -1, 1), '-1 at most once'),
    ((0, 1, 1), 'sizes of at least 1'),
  ],
)
def test_impossible_sizes_are_refused(sizes, message):
  with pytest.raises(UsageError, match=message):
    make_mesh(*sizes)


def test_slices_are_the_outermost_groups():
  mesh = make_mesh(-1, 2, 1, slices=2)
  assert tuple(mesh.shape.values()) == (2, 2, 2, 1)
  assert batch_shard_count(mesh) == 8
  assert set(mesh.devices[0].flat) == set(jax.devices()[:4])


@pytest.mark.parametrize('slices', [0, 3, 16])
def test_slices_that_do_not_divide_the_devices_are_refused(slices):
  message = f'mesh.slices={slices} does not divide 8 devices'
  with pytest.raises(UsageError, match=message):
    make_mesh(slices=slices)


def test_sizes_are_those_of_one_slice():
  with pytest.raises(UsageError, match='fit 4 devices in each of 2 slices'):
    make_mesh(8, 1, 1, slices=2)


def test_devices_can_be_chosen():
  assert make_mesh(devices=jax.devices()[:2]).shape['data'] == 2


@pytest.mark.parametrize('batch_size', [-4, 0, 4, 12])
def test_a_batch_that_does_not_split_is_refused(batch_size):
  message = re.escape(f'data.batch_size={batch_size} does not split over 8')
  with pytest.raises(UsageError, match=message):
    check_batch_size(batch_size, make_mesh())
