"""The TPU's attention on a mesh of fake devices, and in compiled programs."""

import dataclasses
import functools
import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.models.layers import dot_product_attention, split_heads
from clip_jax.parallel import partitioning
from clip_jax.parallel.attention import kernel_attention
from clip_jax.parallel.mesh import batch_sharding, make_mesh
from clip_jax.planning import child, hlo
from clip_jax.planning.costs import is_kernel, kernels_without_costs
from tests.tiny import TINY
from tests.training.test_step import compiled_step, tiny_batch

# Wide enough that two devices with half of the heads each fill registers.
WIDE = dataclasses.replace(
  TINY,
  image=dataclasses.replace(TINY.image, width=256, heads=4),
  text=dataclasses.replace(TINY.text, width=256, heads=4),
)

MASKS = {
  'none': lambda batch, length: None,
  'causal': lambda batch, length: jnp.tri(length, dtype=bool),
  'padding': lambda batch, length: (
    jnp.arange(length) <= jnp.arange(batch)[:, None, None, None]
  ),
}


@pytest.mark.parametrize('mask', MASKS)
def test_devices_compute_their_rows_and_heads(mask):
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  qkv = jax.random.normal(jax.random.key(0), (8, 5, 3, 256))
  seen = MASKS[mask](8, 5)
  plain = dot_product_attention(*split_heads(qkv, 4), seen)
  ours = jax.jit(
    lambda qkv: kernel_attention(mesh, qkv, seen, 4, interpret=True)
  )(qkv)
  np.testing.assert_allclose(ours, plain, atol=2e-6)


def test_other_shapes_are_left_to_the_plain_formula():
  attend = functools.partial(kernel_attention, make_mesh(tensor=4))
  assert attend(jnp.zeros((2, 5, 3, 384)), None, 6) is None  # 1.5 heads each
  assert attend(jnp.zeros((2, 5, 3, 256)), None, 4) is None  # of 64 lanes
  assert attend(jnp.zeros((2, 1_200, 3, 512)), None, 4) is None  # too long


def test_no_other_device_than_a_tpu_has_a_kernel():
  assert partitioning.attention_kernel(make_mesh()) is None


def three_losses(mesh):
  step, state = compiled_step(mesh, config=WIDE)
  values = []
  for i in range(3):
    batch = jax.device_put(tiny_batch(i), batch_sharding(mesh))
    state, metrics = step(state, batch)
    values.append(float(metrics['loss']))
  return values


@pytest.mark.slow
def test_training_on_eight_devices_has_the_losses_of_the_formula(monkeypatch):
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  plain = three_losses(mesh)
  calls = []

  def interpreted(mesh):
    def attend(*args):
      calls.append(args[0].shape)
      return kernel_attention(mesh, *args, interpret=True)

    return attend

  monkeypatch.setattr(partitioning, 'attention_kernel', interpreted)
  np.testing.assert_allclose(three_losses(mesh), plain, rtol=1e-5)
  assert {shape[-1] for shape in calls} == {256}


# Prints a block's forward and backward pass as compiled for a topology.
COMPILE = """
import sys
import jax, jax.numpy as jnp
from clip_jax.models.config import VisionTransformerConfig
from clip_jax.models.layers import Transformer
from clip_jax.parallel import partitioning
from clip_jax.parallel.mesh import batch_sharding, make_mesh
from clip_jax.planning.topology import devices_of, parse_topology

mesh = make_mesh(devices=devices_of(parse_topology(sys.argv[1])))
config = VisionTransformerConfig(
  image_size=56, patch_size=14, width=256, depth=3, heads=4
)
module = Transformer(config, jnp.bfloat16, sys.argv[2])
x = jax.ShapeDtypeStruct(
  (8, 17, 256), jnp.bfloat16, sharding=batch_sharding(mesh)
)
params = jax.eval_shape(
  module.init, jax.random.key(0), jnp.zeros(x.shape, x.dtype)
)['params']
shardings = partitioning.shardings(params, mesh)
params = jax.tree.map(
  lambda p, s: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=s),
  params,
  shardings,
)

def loss(params, x):
  with partitioning.activations_like_batch(mesh):
    return (module.apply({'params': params}, x) ** 2).sum()

print(jax.jit(jax.grad(loss)).lower(params, x).compile().as_text())
"""


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='libtpu, of the extra `plan`, is not installed',
)
@pytest.mark.parametrize(
  ('topology', 'remat'),
  [
    ('v5e:2x2', 'full'),
    ('v5e:2x2', 'save_mlp'),
    ('v5e:2x2', 'save_qkv'),
    ('v4:2x2x1', 'none'),
    ('v5p:2x2x1', 'none'),
    ('v6e:2x2', 'none'),
  ],
)
def test_a_tpu_never_has_logits_in_memory(topology, remat):
  inherited = {k: v for k, v in os.environ.items() if k not in child.UNSET}
  run = subprocess.run(
    [sys.executable, '-c', COMPILE, topology, remat],
    env={**inherited, **child.ENVIRONMENT},
    capture_output=True,
    text=True,
    check=False,
  )
  assert run.returncode == 0, run.stderr[-2_000:]
  module = hlo.parse(run.stdout)
  kernels = [i for _, i, _ in module.executed() if is_kernel(i)]
  assert len(kernels) == (3 if remat in ('full', 'save_mlp') else 2)
  assert kernels_without_costs(module) == []
  logits = 17, 17
  for computation in module.computations.values():
    for instruction in computation.instructions.values():
      for shape in instruction.shapes:
        assert shape.sizes[-2:] != logits, instruction
