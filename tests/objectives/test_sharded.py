"""What the sharded losses communicate, and the memory that they need.

That their numbers are those of the formula is in `test_registry.py`.
"""

import jax
import jax.numpy as jnp

from clip_jax.objectives.contrastive import distributed_softmax_loss
from clip_jax.objectives.registry import make_loss
from clip_jax.objectives.sharded import all_gather_form
from clip_jax.parallel.mesh import BATCH_AXES, batch_sharding, make_mesh


def test_only_the_texts_are_gathered_and_multiplied_once():
  loss = distributed_softmax_loss(
    make_mesh(), BATCH_AXES, all_gather_form(BATCH_AXES)
  )
  shape = jax.ShapeDtypeStruct((32, 12), jnp.float32)
  scalar = jax.ShapeDtypeStruct((), jnp.float32)
  text = jax.jit(loss).lower(shape, shape, scalar, scalar).as_text()
  assert text.count('stablehlo.all_gather') == 1
  assert text.count('stablehlo.dot_general') == 1


def scratch_bytes(devices, form, own=256, width=64, chunk=32):
  """Returns the scratch memory of value and gradient on one of the devices."""
  mesh = make_mesh(devices=jax.devices()[:devices])
  loss = make_loss('softmax', form, mesh, BATCH_AXES, chunk)
  features = jax.ShapeDtypeStruct(
    (own * devices, width), jnp.float32, sharding=batch_sharding(mesh)
  )
  scalar = jax.ShapeDtypeStruct((), jnp.float32)
  value_and_gradients = jax.value_and_grad(loss, argnums=(0, 1, 2, 3))
  arguments = (features, features, scalar, scalar)
  lowered = jax.jit(value_and_gradients).lower(*arguments)
  return lowered.compile().memory_analysis().temp_size_in_bytes


def test_chunked_memory_grows_by_the_gathered_features_alone():
  side = 256 * 64 * 4  # bytes of the texts of one device
  growth = scratch_bytes(8, 'chunked') - scratch_bytes(2, 'chunked')
  # Gathered, and their gradient before it is summed over the devices.
  assert growth < 2.5 * 6 * side
  logits = 256 * 256 * 4  # of its rows against the columns of one device
  assert scratch_bytes(8, 'all_gather') - scratch_bytes(2, 'all_gather') > (
    6 * logits
  )


def test_a_ring_needs_no_more_memory_on_more_devices():
  assert scratch_bytes(8, 'ring') < 1.1 * scratch_bytes(2, 'ring')
