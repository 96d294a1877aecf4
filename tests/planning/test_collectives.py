"""Who exchanges how much with whom."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

from clip_jax.parallel.mesh import make_mesh
from clip_jax.planning import hlo
from clip_jax.planning.collectives import axes_of, collectives, group_of
from tests.planning.programs import TPU, array, program


@pytest.mark.parametrize(
  ('attributes', 'expected'),
  [
    ('replica_groups={{0,2},{1,3}}, dimensions={0}', (0, 2)),
    ('replica_groups=[2,4]<=[8], use_global_device_ids=true', (0, 1, 2, 3)),
    ('replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}', (0, 4)),
    ("replica_groups=mesh['a'=2,'b'=4] {'b'}, x=1", (0, 1, 2, 3)),
    ("replica_groups=mesh['a'=2,'b'=4] {'a'}", (0, 4)),
    ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", (0, 1, 2, 3)),
    (
      "replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}",
      (0, 1, 2, 3),
    ),
    ("replica_groups=mesh['a'=8] {'a':(2)4}", (0, 1, 2, 3)),
    ("replica_groups=mesh['a'=8] {'a':(1)4}", (0, 2, 4, 6)),
    ('source_target_pairs={{0,1},{1,2},{2,0}}', (0, 1)),
    ('replica_groups={}, to_apply=%add', tuple(range(8))),
  ],
)
def test_groups_in_all_spellings(attributes, expected):
  assert group_of(attributes, 8) == expected


def test_axes_that_a_group_runs_along():
  mesh = {'slice': 1, 'data': 2, 'fsdp': 4}
  assert axes_of((0, 1, 2, 3), mesh) == ['fsdp']
  assert axes_of((0, 4), mesh) == ['data']
  assert axes_of((0, 5), mesh) == ['data', 'fsdp']


def test_each_exchange_of_a_program_with_its_bytes():
  mesh = make_mesh(fsdp=4)

  def body(x):
    whole = jax.lax.all_gather(x, 'fsdp', tiled=True)
    total = jax.lax.psum(whole, ('slice', 'data', 'fsdp'))
    shifted = jax.lax.ppermute(x, 'data', [(0, 1), (1, 0)])
    return total.sum() + shifted.sum()

  result = program(
    jax.shard_map(
      lambda x: body(x)[None],
      mesh=mesh,
      in_specs=P(('data', 'fsdp')),
      out_specs=P(('data', 'fsdp')),
      check_vma=False,
    ),
    array(64, 32),
  )
  sizes = {c.op: (c.bytes, len(c.group)) for c in collectives(result, 8)}
  own = 64 // 8 * 32 * 4
  assert sizes['all-gather'] == (4 * own, 4)
  assert sizes['all-reduce'] == (4 * own, 8)
  assert sizes['collective-permute'] == (own, 2)


def test_a_gather_spread_over_fusions_counts_once_and_is_overlapped():
  gather, reduction = collectives(hlo.parse(TPU), 256)
  if gather.op != 'all-gather':
    gather, reduction = reduction, gather
  assert (gather.bytes, gather.times) == (32_768 * 512 * 2, 1)
  assert gather.overlapped
  assert (reduction.bytes, reduction.times) == (3072 * 768 * 2, 12)
  assert not reduction.overlapped
  assert len(reduction.group) == 256


def test_what_goes_to_another_slice_is_one_chips_share():
  result = hlo.parse(
    """ENTRY %main (x: f32[4,16]) -> f32[4,16] {
  %x = f32[4,16]{1,0:T(2,128)} parameter(0)
  %after = token[] after-all()
  %send = (f32[4,16]{1,0}, u32[], token[]) send(%x, %after), channel_id=3, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %y = f32[4,16]{1,0:T(2,128)} copy(%x)
}
"""  # noqa: E501
  )
  (exchange,) = collectives(result, devices=8, slices=2)
  assert (exchange.op, exchange.bytes) == ('all-reduce', 4 * 16 * 4)
  assert axes_of(exchange.group, {'slice': 2, 'data': 4}) == ['slice']


SCATTER = """
HloModule scatter, entry_computation_layout={(bf16[768,3072])->bf16[96,3072]}

%add (x: bf16[], y: bf16[]) -> bf16[] {
  %x = bf16[] parameter(0)
  %y = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%x, %y)
}

%all-reduce-scatter (input: bf16[768,3072]) -> bf16[96,3072] {
  %input = bf16[768,3072]{1,0} parameter(0)
  %all-reduce.1 = bf16[768,3072]{1,0} all-reduce(%input), channel_id=7, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %dynamic-slice.1 = bf16[96,3072]{1,0} dynamic-slice(%all-reduce.1, %zero, %zero), dynamic_slice_sizes={96,3072}
}

ENTRY %main (gradient: bf16[768,3072]) -> bf16[96,3072] {
  %gradient = bf16[768,3072]{1,0} parameter(0)
  ROOT %fusion.1 = bf16[96,3072]{1,0} fusion(%gradient), kind=kCustom, calls=%all-reduce-scatter
}
"""  # noqa: E501


def test_a_tpu_reduces_and_scatters_in_one_fusion():
  (result,) = collectives(hlo.parse(SCATTER), 8)
  assert result.op == 'reduce-scatter'
  assert (result.bytes, len(result.group)) == (768 * 3072 * 2, 8)
