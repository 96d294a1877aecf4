"""Attention of TPUs and GPUs, on a mesh of fake devices and in programs."""

import dataclasses
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.models.layers import dot_product_attention, split_heads
from clip_jax.parallel import attention, partitioning
from clip_jax.parallel.attention import gpu_attention, kernel_of, tpu_attention
from clip_jax.parallel.mesh import batch_sharding, make_mesh
from clip_jax.planning import child, hlo
from clip_jax.planning.products import is_kernel, kernels_without_costs
from tests.tiny import WIDE
from tests.training.test_step import compiled_step, tiny_batch

MASKS = {
  'none': lambda batch, length: None,
  'causal': lambda batch, length: np.tri(length, dtype=bool),
  'padding': lambda batch, length: (
    jnp.arange(length) <= jnp.arange(batch)[:, None, None, None]
  ),
}


def formula(qkv, heads, mask):
  q, k, v = split_heads(qkv, heads)
  return dot_product_attention(q, k, v, mask)


@pytest.mark.parametrize('mask', MASKS)
def test_devices_compute_their_rows_and_heads(mask):
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  qkv = jax.random.normal(jax.random.key(0), (8, 5, 3, 256))
  seen = MASKS[mask](8, 5)
  plain = formula(qkv, 4, seen)
  ours = jax.jit(lambda qkv: tpu_attention(mesh, qkv, seen, 4, interpret=True))(
    qkv
  )
  np.testing.assert_allclose(ours, plain, atol=2e-6)


def test_other_shapes_are_left_to_the_plain_formula():
  attend = functools.partial(tpu_attention, make_mesh(tensor=4))
  assert attend(jnp.zeros((2, 5, 3, 384)), None, 6) is None  # 1.5 heads each
  assert attend(jnp.zeros((2, 5, 3, 256)), None, 4) is None  # of 64 lanes
  assert attend(jnp.zeros((2, 1_200, 3, 512)), None, 4) is None  # too long


@pytest.mark.parametrize(
  ('mask', 'length'),
  [('none', 5), ('causal', 5), ('causal', 6), ('padding', 5)],
)
def test_what_gpus_compute_is_the_formula_with_its_gradients(mask, length):
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  keys = jax.random.split(jax.random.key(0))
  qkv, cotangent = (
    jax.random.normal(key, (8, length, *rest), jnp.bfloat16)
    for key, rest in zip(keys, [(3, 64), (4, 16)], strict=True)
  )
  seen = MASKS[mask](8, length)
  plain, plain_gradient = jax.vjp(
    lambda qkv: formula(qkv, 4, seen),
    qkv.astype(jnp.float32),
  )
  ours, gradient = jax.vjp(
    jax.jit(lambda qkv: gpu_attention(mesh, qkv, seen, 4, 'xla')), qkv
  )
  np.testing.assert_allclose(ours.astype(np.float32), plain, atol=0.02)
  [expected] = plain_gradient(cotangent.astype(jnp.float32))
  [actual] = gradient(cotangent)
  np.testing.assert_allclose(actual.astype(np.float32), expected, atol=0.05)


def test_rows_of_padding_alone_have_finite_outputs():
  nothing = jnp.zeros((8, 1, 1, 5), bool)
  mesh = make_mesh(devices=jax.devices()[:1])
  attend = functools.partial(gpu_attention, mesh, implementation='xla')
  out = attend(jnp.ones((8, 5, 3, 64), jnp.bfloat16), nothing, 4)
  assert out is not None
  assert bool(jnp.isfinite(out).all())


@pytest.mark.parametrize(
  ('shape', 'heads', 'dtype', 'mask', 'served'),
  [
    ((8, 50, 3, 768), 12, jnp.bfloat16, None, True),
    ((8, 77, 3, 512), 8, jnp.float16, np.tri(77, dtype=bool), True),
    ((8, 257, 3, 1280), 16, jnp.bfloat16, np.ones((8, 1, 1, 257), bool), True),
    ((8, 50, 3, 768), 12, jnp.float32, None, False),
    ((8, 50, 3, 512), 2, jnp.bfloat16, None, False),  # heads of 256
    ((8, 50, 3, 144), 12, jnp.bfloat16, None, False),  # of 12
    ((8, 50, 3, 384), 3, jnp.bfloat16, None, False),  # not for two devices
    ((8, 1, 3, 768), 12, jnp.bfloat16, None, False),
    ((8, 5, 3, 768), 12, jnp.bfloat16, np.eye(5, dtype=bool), False),
    ((8, 5, 3, 768), 12, jnp.bfloat16, jnp.tri(5, dtype=bool), False),
  ],
)
def test_cudnn_computes_halves_and_masks_that_it_knows(
  shape, heads, dtype, mask, served
):
  mask = mask if mask is None or mask.ndim == 2 else jnp.asarray(mask)
  out = jax.eval_shape(
    lambda qkv: gpu_attention(
      make_mesh(tensor=2), qkv, mask, heads, implementation='xla'
    ),
    jax.ShapeDtypeStruct(shape, dtype),
  )
  assert (out is not None) == served
  if served:
    assert out.shape == (*shape[:2], heads, shape[-1] // heads)


@pytest.mark.parametrize(
  ('platform', 'capability', 'kernel'),
  [
    ('cpu', None, None),
    ('tpu', None, tpu_attention),
    ('gpu', '8.0', gpu_attention),  # A100
    ('gpu', '9.0', gpu_attention),  # H100
    ('gpu', '12.0', gpu_attention),
    ('gpu', '7.5', None),  # T4
    ('gpu', 'gfx942', None),  # AMD's MI300
  ],
)
def test_the_kernel_is_chosen_by_the_device(platform, capability, kernel):
  device = types.SimpleNamespace(platform=platform)
  if capability:
    device.compute_capability = capability
  assert kernel_of(device) == kernel


@pytest.mark.parametrize('remat', ['none', 'full', 'save_qkv'])
def test_a_gpu_has_cudnn_in_both_towers_of_its_program(monkeypatch, remat):
  # Without a GPU, JAX knows no version of cuDNN to check.
  monkeypatch.setattr(
    'jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version',
    lambda: 91_100,
  )
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  monkeypatch.setattr(
    attention,
    'attention_kernel',
    lambda mesh: functools.partial(gpu_attention, mesh),
  )
  config = dataclasses.replace(
    WIDE, text=dataclasses.replace(WIDE.text, context_length=7)
  )
  module = DualEncoder(config, jnp.bfloat16, remat)
  inputs = (jnp.zeros((8, 16, 16, 3)), jnp.zeros((8, 7), jnp.int32))
  params = jax.eval_shape(module.init, jax.random.key(0), *inputs)

  def loss(params):
    with partitioning.activations_like_batch(mesh):
      images, texts, *_ = module.apply(params, *inputs)
    return (images * texts).sum()

  program = jax.jit(jax.grad(loss)).trace(params)
  text = program.lower(lowering_platforms=('cuda',)).as_text()
  calls = re.findall(r'@__cudnn\$(\w+)\(.*mask_type\W+22: \W+22(\w+)', text)
  for mask in ('PADDING', 'PADDING_CAUSAL'):
    assert ('fmhaSoftmax', mask) in calls
    assert ('fmhaSoftmaxBackward', mask) in calls


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
      return tpu_attention(mesh, *args, interpret=True)

    return attend

  monkeypatch.setattr(attention, 'attention_kernel', interpreted)
  np.testing.assert_allclose(three_losses(mesh), plain, rtol=1e-5)
  assert {shape[-1] for shape in calls} == {256}


# Prints a block's forward and backward pass as compiled for a topology.
COMPILE = """
import sys
import jax, jax.numpy as jnp
from clip_jax.models.config import VisionTransformerConfig
from clip_jax.models.layers import Transformer
from clip_jax.parallel import attention, partitioning
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


needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='libtpu, of the extra `plan`, is not installed',
)


def compiled(code, *arguments):
  """Returns what a program prints that compiles for TPUs."""
  inherited = {k: v for k, v in os.environ.items() if k not in child.UNSET}
  run = subprocess.run(
    [sys.executable, '-c', code, *arguments],
    env={**inherited, **child.ENVIRONMENT},
    capture_output=True,
    text=True,
    check=False,
  )
  assert run.returncode == 0, run.stderr[-2_000:]
  return run.stdout


# Counts the kernels of attention and its gradient for each shape.
COUNT = """
import json, sys
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from clip_jax.parallel.attention import tpu_attention
from clip_jax.parallel.mesh import make_mesh
from clip_jax.planning.topology import devices_of, parse_topology

mesh = make_mesh(devices=devices_of(parse_topology(sys.argv[1]))[:1])
counts = []
for length, heads, width, causal in json.loads(sys.argv[2]):
  qkv = jax.ShapeDtypeStruct(
    (4, length, 3, heads * width),
    jnp.bfloat16,
    sharding=NamedSharding(mesh, P()),
  )
  mask = np.tri(length, dtype=bool) if causal else None

  def loss(qkv):
    out = tpu_attention(mesh, qkv, mask, heads)
    return 0.0 if out is None else out.astype(jnp.float32).sum()

  text = jax.jit(jax.grad(loss)).lower(qkv).compile().as_text()
  counts.append(text.count('custom_call_target="tpu_custom_call"'))
print(json.dumps(counts))
"""

# Tokens, heads, their width, and whether the mask is causal, of SigLIP's
# SO400M at 384 and 512 pixels, ViT-B/16 at 512, and text of many tokens.
LONG = [
  *[(729, 16, 72, False), (1024, 16, 72, False)],
  *[(1024, 12, 64, False), (1024, 8, 64, True)],
]


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(
  ('topology', 'fused'),
  [
    ('v4:2x2x1', [False, False, True, False]),
    ('v5e:2x2', [True] * 4),
    ('v5p:2x2x1', [True] * 4),
    ('v6e:2x2', [True] * 4),
  ],
)
def test_long_rows_are_computed_where_vector_memory_holds_them(topology, fused):
  counts = json.loads(compiled(COUNT, topology, json.dumps(LONG)))
  # The sum needs no value: the gradient alone is computed.
  assert counts == [int(one) for one in fused]


@pytest.mark.slow
@needs_libtpu
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
  module = hlo.parse(compiled(COMPILE, topology, remat))
  kernels = [i for _, i, _ in module.executed() if is_kernel(i)]
  assert len(kernels) == (3 if remat in ('full', 'save_mlp') else 2)
  assert kernels_without_costs(module) == []
  logits = 17, 17
  for computation in module.computations.values():
    for instruction in computation.instructions.values():
      for shape in instruction.shapes:
        assert shape.sizes[-2:] != logits, instruction
