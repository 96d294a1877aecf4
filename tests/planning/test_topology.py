"""Names of topologies, and what is said about wrong ones."""

import pytest

from clip_jax.errors import UsageError
from clip_jax.planning.topology import CHIPS, GIB, parse_topology


@pytest.mark.parametrize(
  ('name', 'chips'),
  [('v5e:16x16', 256), ('v6e:2x2', 4), ('v4:2x2x2', 8), ('v5p:4x4x8', 128)],
)
def test_a_name_says_its_chips(name, chips):
  assert parse_topology(name).chips == chips
  assert parse_topology(name, slices=2).chips == 2 * chips


def test_slices_are_part_of_what_is_printed():
  assert str(parse_topology('v5e:4x4')) == 'v5e:4x4'
  assert str(parse_topology('v5e:4x4', 2)) == '2 x v5e:4x4'


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('v5e-16', 'names look like'),
    ('v3:2x2', 'known chips: v4, v5e, v5p, v6e'),
    ('v5e:4x4x4', 'v5e is wired in 2 dimensions'),
    ('v4:4x4', 'v4 is wired in 3 dimensions'),
    ('v5e:32x16', 'has 1 to 256 chips, and this has 512'),
    ('v5e:0x4', 'and this has 0'),
  ],
)
def test_a_wrong_name_is_refused_with_right_ones(name, message):
  with pytest.raises(UsageError, match=message):
    parse_topology(name)


def test_chips_have_less_memory_than_the_data_sheet_and_a_peak():
  sheet = {'v4': 32, 'v5e': 16, 'v5p': 96, 'v6e': 32}
  for family, chip in CHIPS.items():
    assert 0.95 * sheet[family] * GIB < chip.hbm_bytes < sheet[family] * GIB
    assert chip.peak_flops > 1e14
