"""Update rules that few runs use: Muon, and Adam in half precision."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from clip_jax.trees import path_name

# The matrices that Muon makes orthogonal: the end of a parameter's path, the
# axes that are summed over, and those of the output. All other axes (of layers,
# and of queries, keys and values) count independent matrices. Embeddings, the
# layers that read pixels, the projections to the joint space and all vectors
# are Adam's, as Muon's author advises (kellerjordan.github.io/posts/muon).
_MUON_AXES: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = (
  (r'(cross_)?attention/(qkv|q|kv)/kernel', (-4,), (-2, -1)),  # D 3 N K
  (r'attention_pool/(qkv/)?kernel', (-4,), (-2, -1)),
  (r'((cross_)?attention|attention_pool)/out/kernel', (-3, -2), (-1,)),  # N K D
  (r'mlp/(up|down)/kernel', (-2,), (-1,)),
  (r'(stem/conv[23]|stage\d+_\d+/(shortcut_)?conv\d?)/kernel',
   (-4, -3, -2), (-1,)),  # H W C D
)  # fmt: skip


def scale_by_muon(
  momentum: float, mu_dtype: Any, adam: optax.GradientTransformation
) -> optax.GradientTransformation:
  """Returns Muon for the matrices of blocks, and Adam for all else.

  The momentum of each matrix is made nearly orthogonal by Newton-Schulz steps
  (Jordan et al. 2024). It is scaled to the root mean square of Adam's updates,
  0.2, so that the learning rate and the weight decay of AdamW serve both (arXiv
  2502.16982, equation 4).

  Args:
    momentum: of the matrices; Nesterov's.
    mu_dtype: of the momentum in the state.
    adam: for what is no such matrix.
  """

  def axes(tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
      lambda path, _: _muon_axes(path_name(path)), tree
    )

  def scale(updates: Any, _: Any) -> Any:
    def scaled(path, update):
      numbers: Any = _muon_axes(path_name(path))
      sides = (
        math.prod(update.shape[axis] for axis in side) for side in numbers
      )
      return 0.2 * math.sqrt(max(sides)) * update

    return jax.tree_util.tree_map_with_path(scaled, updates)

  muon = optax.chain(
    contrib.scale_by_muon(
      beta=momentum, mu_dtype=mu_dtype, weight_dimension_numbers=axes
    ),
    optax.stateless(scale),
  )

  def labels(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
      lambda path, _: 'muon' if _muon_axes(path_name(path)) else 'adam', params
    )

  return optax.partition({'muon': muon, 'adam': adam}, labels)


def _muon_axes(name: str) -> contrib.MuonDimensionNumbers | None:
  """Returns the axes of the matrices in a parameter; None if it is Adam's."""
  for end, summed, output in _MUON_AXES:
    if re.search(rf'(^|/){end}$', name):
      return contrib.MuonDimensionNumbers(summed, output)
  return None


def with_bfloat16_second_moment(
  adam: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Returns `optax.scale_by_adam` with its second moment in bfloat16.

  An update changes that moment by a fraction of 1 - b2, which is less than half
  a unit of bfloat16's eight bits: rounded to nearest, it would never change.
  Stochastic rounding keeps it right on average. (The paper gives no details of
  its half-precision statistics, section 2.5.)
  """

  def init(params):
    state: Any = adam.init(params)
    return state._replace(nu=_cast(state.nu, jnp.bfloat16))

  def update(updates, state, params=None):
    full = state._replace(nu=_cast(state.nu, jnp.float32))
    new: Any
    updates, new = adam.update(updates, full, params)
    key = jax.random.fold_in(jax.random.key(0), new.count)
    leaves, structure = jax.tree.flatten(new.nu)
    rounded = [
      stochastic_round(leaf, jax.random.fold_in(key, i))
      for i, leaf in enumerate(leaves)
    ]
    return updates, new._replace(nu=jax.tree.unflatten(structure, rounded))

  return optax.GradientTransformation(init, update)


def stochastic_round(x: jax.Array, key: jax.Array) -> jax.Array:
  """Rounds float32 to bfloat16, up or down at random, and `x` on average."""
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
  bits = (bits + noise) & jnp.uint32(0xFFFF0000)
  return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(jnp.bfloat16)


def _cast(tree: Any, dtype: Any) -> Any:
  return jax.tree.map(lambda x: x.astype(dtype), tree)
