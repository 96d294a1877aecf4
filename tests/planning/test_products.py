"""How products fill a matrix unit, by hand."""

import re

import jax
import jax.numpy as jnp
import pytest

from clip_jax.models.fused_attention import fused_attention
from clip_jax.planning import hlo
from clip_jax.planning.costs import operations
from clip_jax.planning.estimate import (
  FULL_TILE_FRACTION,
  MATRIX_FRACTION,
  estimate,
)
from clip_jax.planning.products import (
  Axis,
  Product,
  kernels_without_costs,
  products_of,
)
from clip_jax.planning.topology import CHIPS, parse_topology
from tests.planning.programs import TPU, array, program


def efficiency(shape, tile):
  rows, summed, columns = (
    Axis(*axis) if isinstance(axis, tuple) else Axis(axis) for axis in shape
  )
  return Product(1, (rows, summed, columns)).efficiency(tile)


# Rows, summed axis, columns, the side of the unit, and what fills it.
CASES = {
  'all tiles full': (1024, 768, 3072, 128, 1),
  'a summed axis of half a tile': (1024, 64, 3072, 128, 1 / 2),
  'a quarter of a larger tile': (1024, 64, 3072, 256, 1 / 4),
  'two and a half tiles of three': (1024, 320, 3072, 128, 320 / 384),
  # The columns stream, and the rows are stationary.
  'columns of half a tile beside full rows': (1024, 768, 64, 128, 1),
  'rows of half a tile beside full columns': (64, 768, 1024, 128, 1),
  'both of half a tile': (64, 768, 64, 128, 1 / 2),
  # 77 rows stream as 80 = 10 x 8; of 77 columns, 128 are held.
  'attention logits of text': (77, 64, 77, 128, 77 / 80 * 77 / 128 / 2),
  # 257 = 3 tiles of 128; the 64 columns stream, which wastes less than half a
  # tile of them, held, would.
  'attention output of ViT-L/14': (257, 257, 64, 128, (257 / 384) ** 2),
  # A kernel that reads heads of 80 with 256 columns streams all of them, or
  # sums over all.
  'output of heads of 80': (
    257,
    257,
    (80, 1, 256),
    128,
    257 * 257 * 80 / (264 * 384 * 256),
  ),
  'logits of heads of 80': (
    257,
    (80, 1, 256),
    257,
    128,
    257 * 257 * 80 / (264 * 384 * 256),
  ),
  # Each position of 257 tokens is 33 registers of 8, among 128 images.
  'tokens of each image': ((257, 128), 1024, 4096, 128, 257 / 264),
  'images of each token': ((128, 257), 1024, 4096, 128, 1),
  # Heads of 64 lie side by side, and fill tiles together.
  'heads are columns': ((128, 257), 1024, (64, 16), 128, 1),
  'heads are summed over': ((128, 257), (64, 16), 1024, 128, 1),
}


@pytest.mark.parametrize('case', CASES)
def test_a_product_fills_what_its_shape_fills(case):
  *shape, tile, expected = CASES[case]
  assert efficiency(shape, tile) == pytest.approx(expected)


def test_six_passes_take_six_times_as_long():
  axes = Axis(128), Axis(128), Axis(128)
  assert Product(1, axes, 6).efficiency(128) == pytest.approx(1 / 6)
  assert Product(1).efficiency(128) == 1  # of unknown shape


def test_units_are_as_the_vendor_says():
  sides = {family: chip.matrix_tile for family, chip in CHIPS.items()}
  assert sides == {'v4': 128, 'v5e': 128, 'v5p': 128, 'v6e': 256}


def axes_in(module: hlo.HloModule):
  return [
    tuple((axis.size, axis.positions) for axis in product.axes or ())
    for computation, instruction, _ in module.executed()
    for product in products_of(module, computation, instruction)
  ]


def test_a_tpus_convolutions_are_products_of_these_axes():
  plain = (128, 1), (512, 1), (512, 1)
  attention = (77, 1), (64, 1), (77, 1)  # for each of 128 x 8 heads
  assert axes_in(hlo.parse(TPU)) == [plain, attention]


def convolution(line: str) -> hlo.HloModule:
  """Returns a program of one convolution: 'RESULT LEFT RIGHT ATTRIBUTES'."""
  result, left, right, attributes = line.split(' ', 3)
  return hlo.parse(
    f'HloModule one\n\nENTRY %main (x: {left}, y: {right}) -> {result} {{\n'
    f'  %x = {left} parameter(0)\n  %y = {right} parameter(1)\n'
    f'  ROOT %z = {result} convolution(%x, %y), {attributes}\n}}\n'
  )


# Products of a ViT-L/14 as libtpu 0.0.42 writes them for v5e, without layouts.
CONVOLUTIONS = {
  'the products to queries, keys and values': (
    'bf16[128,257,3,1024] bf16[128,257,1024,1] bf16[1024,3,1024,1] '
    'window={size=3x1 pad=2_2x0_0 rhs_reversal=1x0}, '
    'dim_labels=1bf0_i0o1->1b0f',
    ((257, 128), (1024, 1), (1024, 3)),
  ),
  'their gradient by the weights': (
    'bf16[1024,1024,1] bf16[128,257,1024] bf16[128,257,1024] '
    'window={size=128}, dim_labels=0fb_0io->bf0',
    ((1024, 1), (257, 128), (1024, 1)),
  ),
  'patches': (
    'bf16[128,16,16,1024] bf16[128,224,224,3] bf16[14,14,3,1024] '
    'window={size=14x14 stride=14x14}, dim_labels=b01f_01io->b01f',
    ((128, 256), (3, 196), (1024, 1)),
  ),
  'a convolution of groups': (
    'bf16[8,16,16,64] bf16[8,16,16,64] bf16[3,3,1,64] '
    'window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, '
    'feature_group_count=64',
    (),
  ),
}


@pytest.mark.parametrize('case', CONVOLUTIONS)
def test_a_convolution_is_a_product_of_these_axes(case):
  line, expected = CONVOLUTIONS[case]
  assert axes_in(convolution(line)) == [expected]


def test_a_product_on_the_cpu_has_the_same_axes():
  logits = program(
    lambda q, k: jnp.einsum('BNLK,BNMK->BNLM', q, k),
    array(2, 3, 10, 64),
    array(2, 3, 12, 64),
  )
  assert axes_in(logits) == [((10, 1), (64, 1), (12, 1))]


def test_precision_of_float32_takes_passes():
  once = 'f32[128,512] f32[128,768] f32[768,512] dim_labels=bf_io->bf'
  highest = f'{once}, operand_precision={{highest,highest}}'
  one, six = (
    sum(o.occupied_flops(128) for o in operations(convolution(line)))
    for line in (once, highest)
  )
  assert six == pytest.approx(6 * one)


# 128 images of 16 heads of 64: the logits of 256 tokens.
HEADS = (
  'bf16[128,16,256,256] bf16[128,16,256,64] bf16[128,16,256,64] '
  'window={size=128x16 stride=127x15 lhs_dilate=128x16}, '
  'dim_labels=01bf_01oi->01bf'
)


def test_heads_of_64_are_estimated_slower_than_by_the_flat_rule():
  pod = parse_topology('v5e:16x16')
  # Without memory traffic, the products alone decide how long a step takes.
  done = [
    type(o)(o.products, 0, o.times) for o in operations(convolution(HEADS))
  ]
  result = estimate(done, [], pod, [])
  flops = 2 * 128 * 16 * 256 * 256 * 64
  flat = flops / (197e12 * MATRIX_FRACTION)
  assert result.step_seconds == pytest.approx(flat)
  half = flops / (197e12 * FULL_TILE_FRACTION / 2)
  assert result.step_seconds_by_shape == pytest.approx(half)
  assert half > flat


def kernel(metadata: str) -> hlo.HloModule:
  """Returns a program of one kernel, with XLA's line breaks in its metadata."""
  return hlo.parse(
    'HloModule kernel\n\nENTRY %main (p: bf16[8,128]) -> bf16[8,128] {\n'
    '  %p = bf16[8,128]{1,0} parameter(0)\n'
    '  ROOT %k = bf16[8,128]{1,0} custom-call(%p), '
    'custom_call_target="tpu_custom_call", '
    f'frontend_attributes={{kernel_metadata={{{metadata}}}}}, '
    'metadata={op_name="jit(f)/k"}, backend_config={"custom_call_config":'
    '{"body":"TUxJUg==","cost_estimate":{"flops":"4096"}}}\n}\n'
  )


def test_a_kernel_states_its_products():
  module = kernel('\n"products":"4x77x64x77 4x77x77x64"\n')
  one, other = ((77, 1), (64, 1), (77, 1)), ((77, 1), (77, 1), (64, 1))
  assert axes_in(module) == [one, other]
  [done] = operations(module)
  assert done.flops == 2 * 2 * 4 * 77 * 77 * 64
  assert kernels_without_costs(module) == []


def test_zeros_that_a_kernel_multiplies_take_time_and_do_not_count():
  [whole], [part] = (
    list(operations(kernel(f'\n"products":"4x128x{k}x128"\n')))
    for k in (256, '64/256')
  )
  assert part.flops * 4 == whole.flops
  assert part.occupied_flops(128) == whole.occupied_flops(128)


def test_a_kernel_of_other_metadata_is_taken_to_fill_tiles():
  module = kernel('\n"xprof_metadata":"{\\"block_q\\": 512}"\n')
  [done] = operations(module)
  assert done.flops == done.occupied_flops(128) == 4096


@pytest.mark.parametrize(
  ('heads', 'head', 'columns'), [(2, 64, 128), (1, 128, 128), (8, 80, 256)]
)
def test_our_attention_states_the_products_that_it_computes(
  heads, head, columns
):
  qkv = jax.ShapeDtypeStruct((3, 2, 9, heads * head), jnp.bfloat16)

  def loss(qkv):
    return jnp.sum(fused_attention(qkv, None, heads), dtype=jnp.float32)

  jaxpr = jax.make_jaxpr(jax.grad(loss))(qkv)
  text = str(jaxpr)
  stated = re.findall(r"'products': '([\dx/ ]+)'", text)
  costs = [int(flops) for flops in re.findall(r'flops=(\d+)', text)]
  of_all = 2 * heads
  assert sorted(costs) == [2 * n * of_all * 9 * 9 * head for n in (2, 5)]
  read = f'{head}/{columns}'
  assert sorted(stated) == sorted(
    [
      f'{of_all}x9x{read}x9 {of_all}x9x9x{read}',
      f'{2 * of_all}x9x{read}x9 {3 * of_all}x9x9x{read}',
    ]
  )
  # The windows that the kernels multiply, in the jaxpr of each.
  computed = re.findall(r':\w+\[(\d+,\d+)\] = dot_general', text)
  assert sorted(computed) == sorted(3 * ['9,9'] + 4 * [f'9,{columns}'])
