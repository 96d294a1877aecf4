"""The kernel for TPUs, interpreted here, against its formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.models import fused_attention as kernel
from clip_jax.models.fused_attention import can_fuse, fused_attention
from clip_jax.models.layers import dot_product_attention

# (heads, width of one): two heads in a register, one, and heads across them.
WIDTHS = [
  *[(2, 64), (6, 64), (4, 32), (1, 128), (2, 128)],
  *[(8, 80), (16, 72), (16, 88), (4, 96), (16, 104)],
]
MASKS = ['none', 'causal', 'padding']
# Distances that the sums of a row allow, relative to the largest value.
TOLERANCES = {'float32': 2e-6, 'bfloat16': 2e-2}


def drawn_case(seed):
  """Draws sizes, a mask and inputs; all widths come in turn."""
  random = np.random.default_rng(seed)
  heads, head = WIDTHS[seed % len(WIDTHS)]
  batch, length = random.integers(1, 5), random.integers(1, 40)
  qkv = 2 * random.normal(size=(3, batch, length, heads * head))
  cotangent = random.normal(size=(batch, length, heads * head))
  mask = {
    'none': None,
    'causal': np.tri(length, dtype=bool)[None],
    'padding': np.arange(length)
    < random.integers(1, length + 1, size=(batch, 1, 1)),
  }[MASKS[random.integers(len(MASKS))]]
  return qkv, cotangent, mask, int(heads)


def formula(qkv, cotangent, mask, heads):
  """Returns attention and the derivative of its product with a cotangent."""
  _, batch, length, width = qkv.shape
  rows = qkv.reshape(3, batch, length, heads, -1)
  q, k, v = rows.transpose(0, 1, 3, 2, 4)  # B N L K
  scale = q.shape[-1] ** -0.5
  logits = np.einsum('bnlk,bnmk->bnlm', q, k) * scale
  if mask is not None:
    logits = np.where(mask[:, None], logits, -np.inf)
  powers = np.exp(logits - logits.max(-1, keepdims=True))
  p = powers / powers.sum(-1, keepdims=True)
  out = np.einsum('bnlm,bnmk->blnk', p, v).reshape(batch, length, width)
  of_out = cotangent.reshape(batch, length, heads, -1).transpose(0, 2, 1, 3)
  of_v = np.einsum('bnlm,bnlk->bnmk', p, of_out)
  of_p = np.einsum('bnlk,bnmk->bnlm', of_out, v)
  of_logits = p * (of_p - (p * of_p).sum(-1, keepdims=True)) * scale
  of_q = np.einsum('bnlm,bnmk->bnlk', of_logits, k)
  of_k = np.einsum('bnlm,bnlk->bnmk', of_logits, q)
  gradient = np.stack([of_q, of_k, of_v]).transpose(0, 1, 3, 2, 4)
  return out, gradient.reshape(qkv.shape)


@pytest.mark.parametrize(
  'seeds',
  [
    range(5, 10),  # the widths of heads across registers
    pytest.param([*range(5), *range(10, 200)], marks=pytest.mark.slow),
  ],
)
def test_value_and_gradient_are_the_formulas(seeds):
  for seed in seeds:
    dtype = sorted(TOLERANCES)[seed % 2]
    *arrays, mask, heads = drawn_case(seed)
    qkv, cotangent = (jnp.asarray(array, dtype) for array in arrays)
    seen = None if mask is None else jnp.asarray(mask)

    @jax.jit  # one program is compiled sooner than many small ones
    def both(qkv, cotangent, seen=seen, heads=heads):
      out, pull_back = jax.vjp(
        lambda qkv: fused_attention(qkv, seen, heads, True), qkv
      )
      return out, pull_back(cotangent)[0]

    exact = formula(
      *(np.asarray(a, np.float64) for a in (qkv, cotangent)), mask, heads
    )
    for ours, theirs in zip(both(qkv, cotangent), exact, strict=True):
      assert ours.dtype == dtype
      distance = np.abs(np.asarray(ours, np.float64) - theirs).max()
      scale = np.abs(theirs).max()
      assert distance <= TOLERANCES[dtype] * scale, f'seed {seed}'


def test_a_row_that_attends_to_nothing_takes_the_mean():
  """Value and gradient are those of the layers' formula, and no NaN."""
  random = np.random.default_rng(0)
  qkv = jnp.asarray(random.normal(size=(3, 1, 5, 128)))
  cotangent = jnp.asarray(random.normal(size=(1, 5, 128)))
  mask = np.tri(5, dtype=bool)[None]
  mask[:, 2] = False

  def of_layers(qkv):
    q, k, v = qkv.reshape(3, 1, 5, 2, 64).swapaxes(2, 3)
    return dot_product_attention(q, k, v, mask).reshape(1, 5, 128)

  def ours(qkv):
    return fused_attention(qkv, jnp.asarray(mask), 2, True)

  for one, other in zip(
    *((f(qkv), *jax.vjp(f, qkv)[1](cotangent)) for f in (ours, of_layers)),
    strict=True,
  ):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


# An example has 16,384 bytes of 128 columns, in queries, keys, values and
# output, whose seven tokens are padded to eight.
@pytest.mark.parametrize(
  ('limit', 'examples', 'columns'),
  [(1, 1, 128), (32_768, 1, 256), (65_536, 1, 512), (196_608, 3, 512)],
)
def test_programs_of_any_size_compute_the_same(
  monkeypatch, limit, examples, columns
):
  """A program holds several examples, one, or some heads of one."""
  qkv = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6, 7, 512)))
  whole = fused_attention(qkv, None, 8, True)
  monkeypatch.setattr(kernel, '_BLOCK_BYTES', limit)
  block = kernel._Block.of(64, None, (qkv, whole))
  assert (block.examples, block.columns) == (examples, columns)
  parts = fused_attention(qkv, None, 8, True)
  np.testing.assert_array_equal(parts, whole)


def fits(length, width, heads, mask_rows=0, memory=kernel.VECTOR_MEMORY):
  qkv = jax.ShapeDtypeStruct((3, 8, length, width), jnp.bfloat16)
  mask = jax.ShapeDtypeStruct((1, mask_rows, length), bool)
  return can_fuse(qkv, mask if mask_rows else None, heads, memory)


def test_widths_that_do_not_fill_registers_are_refused():
  assert fits(50, 1024, 16)
  assert fits(50, 1280, 16)  # heads of 80
  assert not fits(50, 96, 3)
  assert not fits(50, 1024, 4)  # heads of 256


def test_what_the_vector_memory_cannot_hold_is_refused():
  assert fits(1024, 1024, 16)
  assert not fits(1024, 1024, 16, mask_rows=1024)
  assert fits(1024, 1024, 16, mask_rows=1)
  assert not fits(2048, 1024, 16)
  # Heads of 72 are read in whole registers only sixteen at a time.
  assert not fits(729, 1152, 16)
  assert fits(1024, 1152, 16, memory=48 << 20)
  assert not fits(2048, 1152, 16, memory=48 << 20)
