"""The reader of programs, on what the CPU compiles and on a TPU's text."""

import jax
import jax.numpy as jnp
import pytest

from clip_jax.planning import hlo
from tests.planning.programs import TPU, array, program


def test_shapes_of_tuples_with_layouts_and_comments():
  carry = hlo.parse(TPU).computations['body'].instructions['carry']
  assert [shape.sizes for shape in carry.shapes] == [
    (),
    (128, 8, 77, 64),
    (3072, 768),
  ]
  assert [shape.bytes for shape in carry.shapes] == [
    4,
    2 * 128 * 8 * 77 * 64,
    2 * 3072 * 768,
  ]


def test_another_memory_space_is_not_main_memory():
  start = hlo.parse(TPU).computations['main'].instructions['copy-start.1']
  assert [shape.on_chip for shape in start.shapes] == [True, False, True]
  assert [shape.hbm_bytes for shape in start.shapes] == [0, 2 * 128 * 512, 0]


def test_a_loop_turns_as_often_as_its_condition_says():
  result = hlo.parse(TPU)
  loop = result.computations['main'].instructions['while.209']
  assert result.trip_count(loop) == 12
  times = {i.name: n for _, i, n in result.executed()}
  assert times['logits'] == 12
  assert times['both'] == 1


def test_an_unrolled_loop_turns_as_often_as_its_counter_steps():
  for step, turns in ((2, 6), (5, 3)):
    text = TPU.replace('s32[]{:T(128)} constant(1)', f's32[] constant({step})')
    result = hlo.parse(text)
    loop = result.computations['main'].instructions['while.209']
    assert result.trip_count(loop) == turns


def test_loops_in_loops_multiply():
  def inner(x, w):
    return jnp.tanh(x @ w), None

  def outer(x, ws):
    return jax.lax.scan(inner, x, ws)[0], None

  result = program(
    lambda x, ws: jax.lax.scan(outer, x, ws)[0],
    array(8, 16),
    array(3, 5, 16, 16),
  )
  assert max(times for _, _, times in result.executed()) == 15


def test_a_text_that_is_no_program_is_refused():
  with pytest.raises(ValueError, match='no ENTRY computation'):
    hlo.parse('HloModule empty\n')
