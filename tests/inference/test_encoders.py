"""The jitted encoders: with a device's kernel, and on meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.inference.encoders import make_encoders
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.parallel import attention
from clip_jax.parallel.attention import tpu_attention
from clip_jax.parallel.mesh import make_mesh
from tests.tiny import WIDE

HALF = (0.5, 0.5, 0.5)


def features_of(mesh, rows, dtype='float32'):
  """Returns the features of random images and texts, and the jaxpr of both."""
  # The function itself: others may have made these encoders before.
  make = make_encoders.__wrapped__
  encoders = make(WIDE, dtype, HALF, HALF, mesh, False)
  size, length = WIDE.image.image_size, WIDE.text.context_length
  random = np.random.default_rng(0)
  pixels = random.integers(0, 256, (rows, size, size, 3), np.uint8)
  tokens = random.integers(1, WIDE.text.vocab_size, (rows, length), np.int32)
  variables = DualEncoder(WIDE).init(
    jax.random.key(0), jnp.zeros((1, size, size, 3)), jnp.asarray(tokens[:1])
  )
  encode = (encoders.encode_image, pixels), (encoders.encode_text, tokens)
  return (
    [np.asarray(function(variables, x)) for function, x in encode],
    [str(jax.make_jaxpr(function)(variables, x)) for function, x in encode],
  )


@pytest.mark.parametrize('rows', [8, 3])
def test_a_devices_kernel_encodes_as_the_formula_does(monkeypatch, rows):
  mesh = make_mesh() if rows == 8 else None  # 3 rows, on one device
  plain, programs = features_of(mesh, rows)
  assert not any('pallas_call' in program for program in programs)
  monkeypatch.setattr(
    attention,
    'attention_kernel',
    lambda mesh: functools.partial(tpu_attention, mesh, interpret=True),
  )
  by_kernel, programs = features_of(mesh, rows)
  for ours, theirs, program in zip(by_kernel, plain, programs, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    _, _, kernel = program.partition('pallas_call')
    assert ('shard_map' in program) == (mesh is not None)
    # No product of float32 is rounded, not even in the kernel.
    assert kernel.count('dot_general') > 0
    assert 'precision=None' not in program
