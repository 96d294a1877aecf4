"""FLOPs and traffic against numbers by hand and against XLA's own count."""

import jax
import jax.numpy as jnp
import pytest

from clip_jax.planning import hlo
from clip_jax.planning.costs import operations, traffic_of
from clip_jax.planning.products import kernels_without_costs
from tests.planning.programs import NESTED, TPU, array, compiled, program


def flops(result: hlo.HloModule) -> int:
  return sum(o.flops * o.times for o in operations(result))


def test_a_product_in_a_loop_counts_at_each_turn():
  result = program(
    lambda x, ws: jax.lax.scan(lambda x, w: (x @ w, None), x, ws)[0],
    array(8, 16),
    array(7, 16, 16),
  )
  assert flops(result) == 7 * 2 * 8 * 16 * 16


CONVOLUTIONS = {
  'padded': dict(padding=[(1, 1), (1, 1)]),
  'strided': dict(window_strides=(2, 3), padding='SAME'),
  'with holes in the input': dict(
    padding=[(1, 1), (1, 1)], lhs_dilation=(2, 2)
  ),
  'with holes in the kernel': dict(padding='VALID', rhs_dilation=(2, 1)),
}


@pytest.mark.parametrize('case', CONVOLUTIONS)
def test_a_convolution_costs_what_xla_counts(case):
  options = {'window_strides': (1, 1), **CONVOLUTIONS[case]}

  def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), **options
    )

  executable = compiled(convolve, array(2, 12, 10, 8), array(3, 3, 8, 16))
  expected = executable.cost_analysis()['flops']
  assert flops(hlo.parse(executable.as_text())) == expected


def test_groups_of_features_cost_less():
  def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (1, 1),
      'VALID',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=4,
    )

  result = program(convolve, array(2, 6, 6, 8), array(3, 3, 2, 8))
  assert flops(result) == 2 * (2 * 4 * 4) * 8 * (3 * 3 * 2)


def test_products_of_a_batch_cost_what_xla_counts():
  executable = compiled(
    lambda q, k: jnp.einsum('BNLK,BNMK->BNLM', q, k),
    array(2, 3, 10, 4),
    array(2, 3, 12, 4),
  )
  counted = flops(hlo.parse(executable.as_text()))
  assert counted == executable.cost_analysis()['flops'] == 2 * 6 * 10 * 12 * 4


def test_a_tpus_convolutions_count_where_they_meet_data():
  attention = 12 * 2 * 128 * 8 * 77 * 77 * 64
  assert flops(hlo.parse(TPU)) == attention + 2 * 128 * 512 * 512


def traffic(result: hlo.HloModule, name: str) -> int:
  computation, instruction = next(
    (c, i) for c, i, _ in result.executed() if i.name == name
  )
  return traffic_of(result, computation, instruction)


def test_what_stays_on_the_chip_moves_no_main_memory():
  result = hlo.parse(TPU)
  own = 2 * 128 * 512
  assert traffic(result, 'copy-start.1') == own  # read once, kept on the chip
  assert traffic(result, 'copy-done.1') == 0
  assert traffic(result, 'logits') == 2 * (2 * 128 * 8 * 77 * 64)  # q and k


def test_a_slice_reads_its_part_and_an_update_writes_its_part():
  def step(x, i):
    row = jax.lax.dynamic_index_in_dim(x, i, keepdims=True)
    return jax.lax.dynamic_update_index_in_dim(x, 2 * row, i + 1, 0)

  donating = jax.jit(step, donate_argnums=0)
  lowered = donating.lower(array(1000, 256), array(dtype=jnp.int32))
  text = lowered.compile().as_text()
  assert text is not None
  result = hlo.parse(text)
  moved = sum(o.hbm_bytes * o.times for o in operations(result))
  assert 2 * 256 * 4 <= moved < 10 * 256 * 4


def test_a_slice_that_is_taken_in_an_inner_fusion_is_all_that_is_read():
  [done] = operations(hlo.parse(NESTED))
  assert done.hbm_bytes == 2 * (128 * 64 + 64 * 64 + 128 * 64) + 4
  assert done.flops == 2 * 128 * 64 * 64


def kernel_program(cost):
  return hlo.parse(
    'HloModule kernel\n\nENTRY %main (p: bf16[8,128]) -> bf16[8,128] {\n'
    '  %p = bf16[8,128]{1,0} parameter(0)\n'
    '  ROOT %k = bf16[8,128]{1,0} custom-call(%p), '
    'custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/k"}, '
    f'backend_config={{"custom_call_config":{{"body":"TUxJUg=="{cost}}}}}\n}}\n'
  )


def test_a_kernel_costs_what_it_states():
  stated = ',"cost_estimate":{"flops":"4096","bytes_accessed":"1"}'
  [done] = operations(kernel_program(stated))
  assert done.flops == 4096
  assert done.hbm_bytes == 2 * 8 * 128 * 2  # what it reads and writes
  assert kernels_without_costs(kernel_program(stated)) == []


def test_a_kernel_that_states_nothing_is_named():
  program = kernel_program('')
  assert flops(program) == 0
  assert kernels_without_costs(program) == ['jit(f)/k']
