"""Splits the axes of each parameter over mesh axes, by one table.

Modules know nothing of meshes. Changing the sharding is changing a row; the
optimizer's moments carry the paths of their parameters, so the same rows serve
them. An axis that its mesh axis does not divide stays whole.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.models.layers import Attention, Block
from clip_jax.parallel.mesh import batch_sharding
from clip_jax.trees import path_name

# Patterns of the end of a parameter's path, and the mesh axis of each array
# axis. Blocks have the axis of layers first. 'tensor' splits heads, MLP columns
# and the vocabulary (as Megatron does), and 'fsdp' the other large axis.
RULES: tuple[tuple[str, P], ...] = (
  (
    r'blocks/(cross_)?attention/(qkv|q|kv)/kernel',
    P(None, 'fsdp', None, 'tensor', None),
  ),
  (r'blocks/(cross_)?attention/(qkv|q|kv)/bias', P(None, None, 'tensor', None)),
  (r'blocks/(cross_)?attention/out/kernel', P(None, 'tensor', None, 'fsdp')),
  (r'blocks/lora/(qkv|out)/(a|b)', P()),  # of a low rank, they are small
  (r'blocks/mlp/up/kernel', P(None, 'fsdp', 'tensor')),
  (r'blocks/mlp/up/bias', P(None, 'tensor')),
  (r'blocks/mlp/down/kernel', P(None, 'tensor', 'fsdp')),
  (r'blocks/((cross_)?attention/out|mlp/down)/bias', P()),
  (r'ln_(1|2|cross|pre|post|final)/(scale|bias)', P()),
  (r'patch_embedding/kernel', P(None, None, None, 'fsdp')),
  (r'patch_embedding/bias', P()),
  # Attention pooling is not scanned: the same axes without that of the layers.
  (r'attention_pool/(qkv/)?kernel', P('fsdp', None, 'tensor', None)),
  (r'attention_pool/(qkv/)?bias', P(None, 'tensor', None)),
  (r'attention_pool/out/kernel', P('tensor', None, 'fsdp')),
  (r'attention_pool/mlp/up/kernel', P('fsdp', 'tensor')),
  (r'attention_pool/mlp/up/bias', P('tensor')),
  (r'attention_pool/mlp/down/kernel', P('tensor', 'fsdp')),
  (r'attention_pool/(out|mlp/down)/bias', P()),
  (r'attention_pool/(ln/(scale|bias)|probe)', P()),
  (r'(shortcut_)?conv\d?/kernel', P(None, None, None, 'fsdp')),
  (r'(shortcut_)?bn\d?/(scale|bias|mean|var|count)', P()),
  (r'token_embedding/embedding', P('tensor', 'fsdp')),
  (r'(class|position|start|mask)_embedding', P()),
  (r'(image|text)_projection/((up|down)/)?kernel', P('fsdp', None)),
  (r'(image|text)_projection/((up|down)/)?bias', P()),
  (r'(image|patch)_head/(up|middle|down)/kernel', P('fsdp', None)),
  (r'(image|patch)_head/(up|middle|down)/bias', P()),
  (r'(image|patch)_head/prototypes', P('fsdp', 'tensor')),
  (r'centre/(image|patch)_head', P('tensor')),
  (r'logit_(scale|bias)', P()),
  (r'decoder/projector/up/kernel', P('fsdp', 'tensor')),
  (r'decoder/projector/up/bias', P('tensor')),
  (r'decoder/projector/down/kernel', P('tensor', 'fsdp')),
  (r'decoder/projector/down/bias', P()),
  (r'decoder/logits/kernel', P('fsdp', 'tensor')),
  (r'decoder/logits/bias', P('tensor')),
  (r'ns_coeffs', P()),  # Muon's three numbers, in its state
)

# Modules whose outputs enter the residual stream, or are a ResNet's maps.
_RESIDUAL = (Attention, Block, nn.Conv, nn.Embed)

# Parameters whose rows are looked up by token id.
_EMBEDDING_TABLES = re.compile(r'(^|/)token_embedding/embedding$')


def rule_for(name: str) -> P:
  """Returns the table's row for a parameter (or its moments) at path `name`.

  Raises:
    KeyError: no row matches, or more than one does.
  """
  rows = [spec for end, spec in RULES if re.search(rf'(^|/){end}$', name)]
  if len(rows) != 1:
    raise KeyError(
      f'{name} matches {len(rows)} rows of parallel/partitioning.py RULES; '
      'every parameter needs exactly one.'
    )
  return rows[0]


def shardings(tree: Any, mesh: Mesh) -> Any:
  """Returns a NamedSharding for each leaf of `tree` (arrays or their shapes).

  Scalars (counters, the temperature) are replicated.
  """

  def sharding_of(path, leaf):
    if leaf.ndim == 0:
      return NamedSharding(mesh, P())
    return NamedSharding(mesh, _fit(rule_for(path_name(path)), leaf, mesh))

  return jax.tree_util.tree_map_with_path(sharding_of, tree)


def gather_embedding_tables(params: Any, mesh: Mesh, dtype: Any) -> Any:
  """Returns the parameters with embedding tables gathered over 'fsdp'.

  Otherwise a compiler looks up a split table in parts: each device sends its
  columns of the rows that all devices need, which are far more bytes than the
  table. The derivative is then summed on each device for its own tokens, and
  scattered like that of any other parameter.

  Args:
    params: of a model, inside of a jitted function.
    dtype: of the arithmetic, in which the table is sent.
  """

  def gather(path, leaf):
    if not _EMBEDDING_TABLES.search(path_name(path)) or mesh.shape['fsdp'] == 1:
      return leaf
    split = NamedSharding(mesh, _fit(rule_for(path_name(path)), leaf, mesh))
    whole = NamedSharding(
      mesh, P(*(None if axis == 'fsdp' else axis for axis in split.spec))
    )
    return _resharded(leaf, split, whole, dtype)

  return jax.tree_util.tree_map_with_path(gather, params)


def _resharded(
  x: jax.Array, split: NamedSharding, whole: NamedSharding, dtype: Any
) -> jax.Array:
  """Returns `x` in sharding `whole`, while its gradient is in that of `x`."""
  constrain = jax.lax.with_sharding_constraint

  @jax.custom_vjp
  def gather(x):
    return constrain(constrain(x.astype(dtype), split), whole)

  def backward(_, gradient):
    return (constrain(constrain(gradient, whole), split).astype(x.dtype),)

  gather.defvjp(lambda x: (gather(x), None), backward)
  return gather(x)


@contextlib.contextmanager
def activations_like_batch(mesh: Mesh) -> Iterator[None]:
  """Has modules split activations as the batch is, and use attention kernels.

  With parameters split over 'fsdp', a compiler may split activations in the
  same way, and send them back and forth. Here the outputs of all modules that
  write to the residual stream are constrained to the batch's sharding; the
  stream is not split over 'tensor'.
  """
  from clip_jax.parallel.attention import attention_by_kernel

  layout = batch_sharding(mesh)

  def constrain(call, args, kwargs, context):
    output, module = call(*args, **kwargs), context.module
    if context.method_name == '__call__' and (
      isinstance(module, _RESIDUAL) or module.name == 'patch_embedding'
    ):
      return jax.lax.with_sharding_constraint(output, layout)
    return output

  with nn.intercept_methods(constrain), attention_by_kernel(mesh):
    yield


def _fit(spec: P, leaf: Any, mesh: Mesh) -> P:
  """Returns `spec` without mesh axes that do not divide their array axis."""
  sizes = zip(spec, leaf.shape, strict=False)
  return P(
    *(
      axis if axis and size % mesh.shape[axis] == 0 else None
      for axis, size in sizes
    )
  )
