"""A decoder-only language model, to be compiled for TPUs that are not there.

It is MaxText's of github.com/AI-Hypercomputer/maxtext: RMSNorm, rotary
positions, a gated MLP and JAX's own kernel for causal attention, in bfloat16
over float32 parameters, under AdamW. MaxText counts 6 FLOPs for each parameter
and token, and of attention half of the square
(`calculate_tflops_training_per_device`, as it was in 2023).

Letters in shapes: B sequences, L tokens, D width, N heads, K width of a head.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.planning import hlo
from clip_jax.planning.costs import Operation
from clip_jax.planning.products import Axis, Product, is_kernel
from clip_jax.planning.topology import devices_of, parse_topology

_BLOCK = 512  # of tokens, in the attention kernel
_HEAD = 128
_VOCABULARY = 32_000


@dataclasses.dataclass(frozen=True)
class LanguageModel:
  """A published run of MaxText.

  Attributes:
    mfu: the published share of the peak, by its own count.
    batch: sequences for each chip.
    remat: MaxText's name: 'full' keeps the inputs of blocks, 'minimal' also
      the products with weights.
    tensor: how many chips share a block.
  """

  topology: str
  mfu: float
  width: int
  hidden: int
  depth: int
  heads: int
  batch: int
  remat: str = 'full'
  tensor: int = 1
  length: int = 2048


def shapes(model: LanguageModel) -> dict[str, tuple[tuple[int, ...], P]]:
  """Returns the shape and the sharding of each parameter."""
  width, hidden, heads = model.width, model.hidden, model.heads
  across = (model.depth, width, heads, _HEAD)
  return {
    'embedding': ((_VOCABULARY, width), P('tensor', 'fsdp')),
    'logits': ((width, _VOCABULARY), P('fsdp', 'tensor')),
    'norm': ((width,), P()),
    'layers/norm_1': ((model.depth, width), P()),
    'layers/norm_2': ((model.depth, width), P()),
    **{
      f'layers/{name}': (across, P(None, 'fsdp', 'tensor'))
      for name in ('query', 'key', 'value')
    },
    'layers/out': (
      (model.depth, heads, _HEAD, width),
      P(None, 'tensor', None, 'fsdp'),
    ),
    'layers/gate': ((model.depth, width, hidden), P(None, 'fsdp', 'tensor')),
    'layers/up': ((model.depth, width, hidden), P(None, 'fsdp', 'tensor')),
    'layers/down': ((model.depth, hidden, width), P(None, 'tensor', 'fsdp')),
  }


def model_flops(model: LanguageModel) -> int:
  """Returns the FLOPs of a step for each chip, as MaxText counts them."""
  parameters = sum(int(np.prod(shape)) for shape, _ in shapes(model).values())
  # The batch is that of one chip, also where chips share its sequences.
  tokens = model.batch * model.length
  attention = 6 * model.depth * model.heads * _HEAD * model.length * tokens
  return 6 * parameters * tokens + attention


Parameters = Mapping[str, jax.Array]


def loss(
  model: LanguageModel,
  attend: Callable[..., Any],
  shard: Callable[..., jax.Array],
  parameters: Parameters,
  tokens: jax.Array,
) -> jax.Array:
  """Returns the mean cross-entropy of each next token.

  Args:
    attend: attention of queries, keys and values [B, N, L, K].
    shard: places activations by the names of their axes' mesh axes.
    tokens: [B, L].
  """
  layers, rest = {}, {}
  for name, array in parameters.items():
    where = layers if name.startswith('layers/') else rest
    where[name.removeprefix('layers/')] = array

  def block(x, layer):
    layer = {name: array.astype(x.dtype) for name, array in layer.items()}
    h = _norm(x, layer['norm_1'])
    q, k, v = (
      jnp.einsum('BLD,DNK->BNLK', h, layer[name])
      for name in ('query', 'key', 'value')
    )
    h = attend(_rotated(q) * _HEAD**-0.5, _rotated(k), v)
    x = x + jnp.einsum('BNLK,NKD->BLD', h, layer['out'])
    h = _norm(x, layer['norm_2'])
    h = jax.nn.silu(h @ layer['gate']) * (h @ layer['up'])
    x = x + shard(h, 'fsdp', None, 'tensor') @ layer['down']
    return shard(x, 'fsdp', None, 'tensor'), None

  policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  block = jax.checkpoint(
    block,
    prevent_cse=False,
    policy=policy if model.remat == 'minimal' else None,
  )
  # MaxText looks tokens up by a product with one-hot rows (`use_iota_embed`).
  x = jax.nn.one_hot(tokens, _VOCABULARY, dtype=jnp.bfloat16)
  x = shard(x, 'fsdp', None, 'tensor') @ rest['embedding'].astype(x.dtype)
  x, _ = jax.lax.scan(block, shard(x, 'fsdp', None, 'tensor'), layers)
  x = _norm(x, rest['norm'].astype(x.dtype))
  logits = (x @ rest['logits'].astype(x.dtype)).astype(jnp.float32)
  losses = optax.softmax_cross_entropy_with_integer_labels(
    shard(logits, 'fsdp', None, 'tensor'), jnp.roll(tokens, -1, axis=-1)
  )
  return losses.mean()


def _norm(x: jax.Array, scale: jax.Array) -> jax.Array:
  wide = x.astype(jnp.float32)
  mean = jnp.mean(wide * wide, axis=-1, keepdims=True)
  return (wide * jax.lax.rsqrt(mean + 1e-5)).astype(x.dtype) * scale


def _rotated(x: jax.Array) -> jax.Array:
  """Returns queries or keys [B, N, L, K] turned by their positions."""
  half = _HEAD // 2
  turns = 10_000.0 ** (-jnp.arange(half) / half)
  angles = jnp.arange(x.shape[-2])[:, None] * turns
  sin, cos = jnp.sin(angles), jnp.cos(angles)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = first * cos - second * sin, second * cos + first * sin
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def _kernel(model: LanguageModel, mesh: Mesh) -> Callable[..., Any]:
  """Returns causal attention by JAX's kernel, in blocks of tokens."""
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
  )
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
  )

  square = (model.length, model.length)
  heads = model.heads // model.tensor
  sizes = splash.BlockSizes(
    block_q=_BLOCK,
    block_kv=_BLOCK,
    block_q_dkv=_BLOCK,
    block_kv_dkv=_BLOCK,
    block_q_dq=_BLOCK,
    block_kv_dq=_BLOCK,
  )
  attend = splash.make_splash_mha(
    mask=masks.MultiHeadMask([masks.CausalMask(square)] * heads),
    head_shards=1,
    q_seq_shards=1,
    block_sizes=sizes,
  )
  return jax.shard_map(
    jax.vmap(attend),
    mesh=mesh,
    in_specs=P('fsdp', 'tensor'),
    out_specs=P('fsdp', 'tensor'),
    check_vma=False,
  )


def kernel_operations(
  model: LanguageModel, module: hlo.HloModule
) -> Iterator[Operation]:
  """Yields the arithmetic of the attention kernels, which state none.

  Blocks above the diagonal are left out. What they read and write is among
  the operations of the program.
  """
  blocks = model.length // _BLOCK
  keys = _BLOCK * (blocks + 1) // 2
  count = model.batch * model.heads  # a chip has fewer heads of more sequences
  flops = 2 * count * model.length * _HEAD * keys
  one = Product(flops, (Axis(model.length), Axis(_HEAD), Axis(keys)))
  for _, instruction, times in module.executed():
    if is_kernel(instruction):
      name = instruction.attribute(r'op_name="([^"]*)"') or ''
      number = {'fwd': 2, 'dq': 3, 'dkv': 4}
      [products] = [n for word, n in number.items() if f'_{word}_' in name]
      yield Operation((one,) * products, 0, times)


def compiled(model: LanguageModel) -> tuple[str, Mesh]:
  """Returns the text of a step's program, and its mesh."""
  devices = np.array(devices_of(parse_topology(model.topology)))
  mesh = Mesh(devices.reshape(-1, model.tensor), ('fsdp', 'tensor'))

  def shard(x: jax.Array, *axes: str | None) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*axes)))

  def array(shape: tuple[int, ...], spec: P, dtype: Any) -> Any:
    sharding = NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  parameters = {
    name: array(shape, spec, jnp.float32)
    for name, (shape, spec) in shapes(model).items()
  }
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(3e-5, 0.9, 0.95, weight_decay=0.1),
  )
  attend = _kernel(model, mesh)

  def step(state, tokens):
    parameters, moments = state
    gradients = jax.grad(
      lambda parameters: loss(model, attend, shard, parameters, tokens)
    )(parameters)
    updates, moments = optimizer.update(gradients, moments, parameters)
    return optax.apply_updates(parameters, updates), moments

  moments = optax.tree.map_params(
    optimizer,
    lambda _, parameter: parameter,
    jax.eval_shape(optimizer.init, parameters),
    parameters,
    transform_non_params=lambda x: array(x.shape, P(), x.dtype),
  )
  state = parameters, moments
  sequences = model.batch * devices.size
  tokens = array((sequences, model.length), P('fsdp'), jnp.int32)
  shardings = jax.tree.map(lambda x: x.sharding, state)
  program = jax.jit(step, donate_argnums=0, out_shardings=shardings)
  return program.lower(state, tokens).compile().as_text() or '', mesh
