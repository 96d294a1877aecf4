"""The roofline by hand."""

import dataclasses

import pytest

from clip_jax.planning.collectives import Collective
from clip_jax.planning.costs import Operation
from clip_jax.planning.estimate import (
  FULL_TILE_FRACTION,
  HBM_FRACTION,
  MATRIX_FRACTION,
  NETWORK_FRACTION,
  days_and_chip_hours,
  estimate,
  exchange_seconds,
)
from clip_jax.planning.products import Axis, Product
from clip_jax.planning.topology import parse_topology


@dataclasses.dataclass(frozen=True)
class FakeDevice:
  coords: tuple[int, ...]
  slice_index: int = 0


def square(side, slices=1):
  return [
    FakeDevice((x, y), i)
    for i in range(slices)
    for x in range(side)
    for y in range(side)
  ]


POD = parse_topology('v5e:16x16')
PRODUCT = Product(int(197e12 * MATRIX_FRACTION))
PRODUCTS = Operation((PRODUCT,), hbm_bytes=0, times=2)
MEMORY = Operation((), hbm_bytes=int(819e9 * HBM_FRACTION), times=1)


def test_each_instruction_takes_its_longer_part():
  both = Operation((PRODUCT,), MEMORY.hbm_bytes // 2, 1)
  result = estimate([PRODUCTS, MEMORY, both], [], POD, square(16))
  assert result.matrix_seconds == pytest.approx(3)
  assert result.hbm_seconds == pytest.approx(1.5)
  assert result.compute_seconds == result.step_seconds == pytest.approx(4)


def test_by_shape_a_product_takes_the_tiles_that_it_occupies():
  second = int(197e12 * FULL_TILE_FRACTION)
  full = Axis(128), Axis(128), Axis(128)
  half = Axis(128), Axis(64), Axis(128)
  done = [
    Operation((Product(second, full),), 0, 1),
    Operation((Product(second, half),), 0, 1),
    MEMORY,
  ]
  result = estimate(done, [], POD, square(16))
  assert result.matrix_seconds_by_shape == pytest.approx(1 + 2)
  assert result.compute_seconds_by_shape == pytest.approx(1 + 2 + 1)
  assert result.step_seconds_by_shape == result.compute_seconds_by_shape
  flat = FULL_TILE_FRACTION / MATRIX_FRACTION
  assert result.step_seconds == pytest.approx(2 * flat + 1)


def exchange(op, group, overlapped=False, size=10**9):
  return Collective(op, size, tuple(group), 1, overlapped)


def test_a_reduction_over_a_pod_uses_all_four_links_both_ways():
  seconds = exchange_seconds(
    exchange('all-reduce', range(256)), POD, square(16)
  )
  rate = 200e9 * NETWORK_FRACTION
  assert seconds == pytest.approx(2 * 1e9 * 255 / 256 / rate)


def test_a_gather_along_one_side_uses_the_links_of_that_side():
  row = exchange_seconds(exchange('all-gather', range(16)), POD, square(16))
  rate = 100e9 * NETWORK_FRACTION
  assert row == pytest.approx(1e9 * 15 / 16 / rate)


def test_a_short_side_has_no_way_around():
  small = parse_topology('v5e:4x4')
  seconds = exchange_seconds(exchange('all-gather', range(4)), small, square(4))
  assert seconds == pytest.approx(1e9 * 3 / 4 / (50e9 * NETWORK_FRACTION))


def test_between_slices_each_chip_sends_its_share():
  two = parse_topology('v5e:4x4', slices=2)
  devices = square(4, slices=2)
  inside = exchange_seconds(exchange('all-reduce', range(16)), two, devices)
  across = exchange_seconds(exchange('all-reduce', range(32)), two, devices)
  share = 2 * 1e9 / 16 * (1 / 2) / (3.125e9 * NETWORK_FRACTION)
  assert across == pytest.approx(inside + share)


def test_overlapped_exchanges_cost_nothing_beside_longer_work():
  overlapped = exchange('all-gather', range(256), overlapped=True)
  result = estimate([PRODUCTS], [overlapped], POD, square(16))
  assert result.step_seconds == pytest.approx(2)
  assert result.collective_seconds > 0
  shown = dataclasses.replace(overlapped, overlapped=False)
  longer = estimate([PRODUCTS], [shown], POD, square(16))
  assert longer.step_seconds == pytest.approx(2 + result.collective_seconds)


def test_days_and_chip_hours():
  assert days_and_chip_hours(0.5, 172_800, 256) == (1.0, 24 * 256)
