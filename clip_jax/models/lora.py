"""Low-rank adapters of the attention products (LoRA, arXiv 2106.09685).

A block has, beside its kernels W of queries, keys, values and output, factors A
and B of rank r, and computes with W + alpha / r * A B (section 4.1). That sum
is made in float32 within each block, a layer of the scan at a time: so a model
whose adapters were merged is the one that was trained, to the last bit of W.

Letters in shapes: D width, N heads, K width of a head, R rank; a stack of
blocks has the axis of layers first.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from clip_jax.models.config import CLIPConfig, LoRAConfig

ADAPTERS = 'lora'  # of the adapters, among the parameters of a block


def is_adapter(path: str) -> bool:
  """Returns whether the parameter at a path is part of an adapter."""
  return f'/blocks/{ADAPTERS}/' in path


class AdaptedBlock:
  """A block with adapters among its parameters, for `Transformer`.

  It has the two methods of a Flax module that a stack of blocks uses.
  """

  def __init__(self, block: Any, lora: LoRAConfig):
    self._block = block
    self._lora = lora

  def init(self, key: jax.Array, *inputs: Any, **context: Any) -> Any:
    params = self._block.init(key, *inputs, **context)['params']
    key = jax.random.fold_in(key, 1)  # the rest is as without adapters
    return {'params': with_adapters(params, key, self._lora)}

  def apply(self, variables: Any, *inputs: Any, **context: Any) -> jax.Array:
    params = merge_block(variables['params'], self._lora)
    return self._block.apply({'params': params}, *inputs, **context)


def with_adapters(block: Any, key: jax.Array, lora: LoRAConfig) -> Any:
  """Returns a block with adapters, with which it computes as without.

  A is random and B is zero, so that their product is zero (section 4.1).
  Queries, keys and values have adapters of their own.

  Args:
    block: its parameters.
  """
  qkv, out = (block['attention'][name]['kernel'] for name in ('qkv', 'out'))
  width, _, heads, head_width = qkv.shape
  std = width**-0.5
  keys, rank = jax.random.split(key), lora.rank
  adapters = {
    'qkv': {
      'a': std * jax.random.normal(keys[0], (width, 3, rank)),
      'b': jnp.zeros((3, rank, heads, head_width)),
    },
    'out': {
      'a': std * jax.random.normal(keys[1], (*out.shape[:2], rank)),
      'b': jnp.zeros((rank, width)),
    },
  }
  return {**block, ADAPTERS: adapters}


def merge_block(block: Any, lora: LoRAConfig) -> Any:
  """Returns a block, or a stack of them, its adapters added to its kernels."""
  own = dict(block)
  adapters = own.pop(ADAPTERS)
  attention = dict(own['attention'])
  for name, product in (('qkv', _qkv_product), ('out', _out_product)):
    layer = attention[name]
    change = product(**adapters[name]) * (lora.alpha / lora.rank)
    kernel = (layer['kernel'] + change).astype(layer['kernel'].dtype)
    attention[name] = {**layer, 'kernel': kernel}
  return {**own, 'attention': attention}


def merge(
  variables: dict[str, Any], config: CLIPConfig
) -> tuple[dict[str, Any], CLIPConfig]:
  """Returns a model without adapters that computes the same.

  Args:
    variables: collections by name of arrays.
    config: of the model; one without adapters comes back as it is.
  """
  if config.lora is None:
    return variables, config
  params = dict(variables['params'])
  for tower in config.lora.towers:
    own = dict(params[tower])
    transformer = dict(own['transformer'])
    blocks = jax.tree.map(jnp.asarray, transformer['blocks'])
    transformer['blocks'] = merge_block(blocks, config.lora)
    params[tower] = own | {'transformer': transformer}
  return (
    {**variables, 'params': params},
    dataclasses.replace(config, lora=None),
  )


def _qkv_product(
  a: Float[Array, '*L D 3 R'], b: Float[Array, '*L 3 R N K']
) -> Float[Array, '*L D 3 N K']:
  return jnp.einsum('...DCR,...CRNK->...DCNK', a, b, precision='highest')


def _out_product(
  a: Float[Array, '*L N K R'], b: Float[Array, '*L R D']
) -> Float[Array, '*L N K D']:
  return jnp.einsum('...NKR,...RD->...NKD', a, b, precision='highest')
