"""Computes self-attention on TPUs by their kernel, split over a mesh."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from clip_jax.models.fused_attention import can_fuse, fused_attention
from clip_jax.models.layers import Mask
from clip_jax.parallel.mesh import BATCH_AXES

# Of longer rows, the logits of a head do not fit into a core's vector memory.
_LONGEST = 1_100


def kernel_attention(
  mesh: Mesh,
  qkv: Float[Array, 'B L 3 W'],
  mask: Mask | None,
  heads: int,
  interpret: bool = False,
) -> Float[Array, 'B L N K'] | None:
  """Returns what `layers.Attention.attend` does, or None for other shapes.

  Each device computes its rows of the batch and its heads.

  Args:
    mask: True where a token is attended to.
    heads: N.
    interpret: for devices that are no TPUs.
  """
  parts = mesh.shape['tensor']
  length, width = qkv.shape[1], qkv.shape[-1]
  if (
    length > _LONGEST
    or heads % parts
    or not can_fuse(width // parts, heads // parts)
  ):
    return None
  arrays = [jnp.moveaxis(qkv, 2, 0)]
  specs = [P(None, BATCH_AXES, None, 'tensor')]
  if mask is not None:
    of_all = mask.ndim == 2
    arrays.append(mask[None] if of_all else mask[:, 0])
    specs.append(P() if of_all else P(BATCH_AXES))

  def attend(qkv, mask=None):
    return fused_attention(qkv, mask, heads // parts, interpret)

  out: jax.Array = jax.shard_map(
    attend,
    mesh=mesh,
    in_specs=tuple(specs),
    out_specs=P(BATCH_AXES, None, 'tensor'),
    check_vma=False,
  )(*arrays)
  return out.reshape(*out.shape[:2], heads, -1)
