"""Computes self-attention by a device's own kernel, split over a mesh.

On TPUs that is ours, and on GPUs cuDNN's. Each device computes its rows of the
batch and its heads.
"""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from clip_jax.models.layers import Attention, Mask
from clip_jax.parallel.mesh import BATCH_AXES, batch_shard_count

# The bytes of a TPU core's vector memory that a kernel may take, for kinds of
# device whose cores have 64 MiB or more (jax/_src/pallas/mosaic/tpu_info.py).
_VECTOR_MEMORY = dict.fromkeys(
  ('TPU v5 lite', 'TPU v5', 'TPU v6 lite'), 48 << 20
)

# cuDNN has flash attention and its derivative for these dtypes and for heads up
# to this width, on every GPU since Ampere, which has compute capability 8
# (jax/_src/cudnn/fused_attention_stablehlo.py, and the support matrix of
# docs.nvidia.com/cudnn/operations/Attention).
_HALF = (jnp.bfloat16, jnp.float16)
_WIDEST_HEAD = 128


@contextlib.contextmanager
def attention_by_kernel(mesh: Mesh) -> Iterator[None]:
  """Has modules compute self-attention by a kernel of the mesh's devices.

  Where these have none for it, the plain formula stays.
  """
  kernel = attention_kernel(mesh)
  if kernel is None:
    yield
    return

  def attend(call, args, kwargs, context):
    module, heads = context.module, None
    if (
      isinstance(module, Attention)
      and context.method_name == 'attend'
      and not module.is_initializing()  # which is under `vmap`
    ):
      heads = kernel(*args, module.heads)
    return call(*args, **kwargs) if heads is None else heads

  with nn.intercept_methods(attend):
    yield


def attention_kernel(mesh: Mesh) -> Callable[..., jax.Array | None] | None:
  """Returns what computes self-attention on a mesh's devices.

  It is None where the plain formula does, `layers.dot_product_attention`; for
  shapes and masks that a kernel does not serve, its result is.
  """
  kernel = kernel_of(mesh.devices.flat[0])
  return kernel and functools.partial(kernel, mesh)


def kernel_of(device: Any) -> Callable[..., jax.Array | None] | None:
  """Returns the kernel of a device's kind, None where the formula serves.

  The kernel in turn returns None for what it does not compute.
  """
  if device.platform == 'tpu':
    return tpu_attention
  return gpu_attention if _has_cudnn_attention(device) else None


def _has_cudnn_attention(device: Any) -> bool:
  # '9.0' of a Hopper; those of AMD have names such as 'gfx942'.
  capability = getattr(device, 'compute_capability', '')
  return bool(re.fullmatch(r'\d+\.\d', capability)) and float(capability) >= 8


def tpu_attention(
  mesh: Mesh,
  qkv: Float[Array, 'B L 3 W'],
  mask: Mask | None,
  heads: int,
  interpret: bool = False,
) -> Float[Array, 'B L N K'] | None:
  """Returns what `layers.Attention.attend` does, or None for other shapes.

  Args:
    mask: True where a token is attended to.
    heads: N.
    interpret: for devices that are no TPUs.
  """
  from clip_jax.models import fused_attention as fused  # Pallas loads slowly

  parts = mesh.shape['tensor']
  if heads % parts or len(qkv) % batch_shard_count(mesh):
    return None
  arrays: list[Any] = [jnp.moveaxis(qkv, 2, 0)]
  specs = [P(None, BATCH_AXES, None, 'tensor')]
  if mask is not None:
    of_all = mask.ndim == 2
    mask = mask[None] if of_all else mask[:, 0]
    arrays.append(mask)
    specs.append(P() if of_all else P(BATCH_AXES))
  shape = (*arrays[0].shape[:-1], qkv.shape[-1] // parts)
  own = jax.ShapeDtypeStruct(shape, qkv.dtype)
  kind = mesh.devices.flat[0].device_kind
  memory = _VECTOR_MEMORY.get(kind, fused.VECTOR_MEMORY)
  if not fused.can_fuse(own, mask, heads // parts, memory):
    return None

  def attend(qkv, mask=None):
    return fused.fused_attention(qkv, mask, heads // parts, interpret)

  return _on_each_device(attend, mesh, arrays, specs, heads)


def gpu_attention(
  mesh: Mesh,
  qkv: Float[Array, 'B L 3 W'],
  mask: Mask | None,
  heads: int,
  implementation: Literal['cudnn', 'xla'] = 'cudnn',
) -> Float[Array, 'B L N K'] | None:
  """Returns what `layers.Attention.attend` does, or None for other inputs.

  These are float32, wide heads, and masks that are neither padding nor known to
  be causal: cuDNN would need such a mask as a bias, which has no gradient for
  an odd number of tokens.

  Args:
    mask: True where a token is attended to.
    heads: N.
    implementation: of `jax.nn.dot_product_attention`; 'xla' runs anywhere.
  """
  parts = mesh.shape['tensor']
  length, width = qkv.shape[1], qkv.shape[-1] // heads
  is_causal = _is_causal(mask)
  if (
    qkv.dtype not in _HALF
    or heads % parts
    or len(qkv) % batch_shard_count(mesh)
    or width > _WIDEST_HEAD
    or width % 8
    or length == 1  # a known issue of its derivative
    or not (mask is None or is_causal or mask.ndim == 4)
  ):
    return None
  # cuDNN is told the length of each row: without that, its derivative on Hopper
  # may be NaN for rows that do not fill its tiles of 128 keys
  # (NVIDIA/cudnn-frontend, issues 160 and 1072). A row of padding alone is said
  # to have one token.
  seen = jnp.full(len(qkv), length, jnp.int32)
  if mask is not None and not is_causal:
    seen = jnp.maximum(mask.sum((1, 2, 3), dtype=jnp.int32), 1)

  def attend(qkv, seen):
    # JAX refuses the derivative of an odd number of tokens. One more costs
    # little, as the three have to be copied apart anyway.
    qkv = jnp.pad(qkv, ((0, 0), (0, length % 2), (0, 0), (0, 0)))
    rows = qkv.reshape(*qkv.shape[:3], -1, width)
    q, k, v = (rows[:, :, i] for i in range(3))  # B L N K
    out = jax.nn.dot_product_attention(
      q,
      k,
      v,
      is_causal=is_causal,
      query_seq_lengths=jnp.full_like(seen, length),
      key_value_seq_lengths=seen,
      implementation=implementation,
    )
    return out[:, :length].reshape(len(out), length, -1)

  specs = [P(BATCH_AXES, None, None, 'tensor'), P(BATCH_AXES)]
  return _on_each_device(attend, mesh, [qkv, seen], specs, heads)


def _is_causal(mask: Mask | None) -> bool:
  """Returns whether a mask is known to be causal when a program is traced."""
  return (
    isinstance(mask, np.ndarray)
    and mask.ndim == 2
    and np.array_equal(mask, np.tri(len(mask), dtype=bool))
  )


def _on_each_device(
  attend: Callable[..., Any],
  mesh: Mesh,
  arrays: Sequence[Any],
  specs: Sequence[P],
  heads: int,
) -> Float[Array, 'B L N K']:
  """Computes each device's rows of the batch and its heads.

  One device computes where the arrays are, which a mesh need not know.
  """
  if mesh.size > 1:
    attend = jax.shard_map(
      attend,
      mesh=mesh,
      in_specs=tuple(specs),
      out_specs=P(BATCH_AXES, None, 'tensor'),
      check_vma=False,
    )
  out: jax.Array = attend(*arrays)
  return out.reshape(*out.shape[:2], heads, -1)
