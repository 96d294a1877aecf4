"""Measures the forms of the contrastive loss: time and memory."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clip_jax.benchmarks.timing import (
  Figures,
  device_facts,
  free_bytes,
  median_seconds,
  planned_bytes,
)
from clip_jax.objectives.registry import FORMS, check_chunk, make_loss
from clip_jax.objectives.sharded import largest_divisor
from clip_jax.parallel.mesh import (
  BATCH_AXES,
  batch_shard_count,
  batch_sharding,
  check_batch_size,
  make_mesh,
)

_MAX_SECONDS = 20.0  # seconds, for one form


def bench_loss(
  name: str, batch: int, embed_dim: int, chunk: int | None, calls: int
) -> list[Figures]:
  """Measures value and gradient of each form of the loss, and its memory.

  Args:
    name: softmax or sigmoid.
    batch: pairs, all devices together.
    embed_dim: of the features, float32.
    chunk: rows and columns of a tile; None is the largest divisor up to 1,024.
    calls: the number of calls that are measured; a call of many seconds is
      measured once, and a form that memory does not hold is only compiled.
  """
  mesh = make_mesh()
  check_batch_size(batch, mesh)
  devices = batch_shard_count(mesh)
  chunk = chunk or largest_divisor(batch // devices, 1024)
  for form in FORMS:
    check_chunk(form, chunk, batch, devices)
  return [
    _loss_figures(name, form, mesh, batch, embed_dim, chunk, calls)
    for form in FORMS
  ]


def _loss_figures(
  name: str,
  form: str,
  mesh: Mesh,
  batch: int,
  embed_dim: int,
  chunk: int,
  calls: int,
) -> Figures:
  compiled = compiled_loss(name, form, mesh, batch, embed_dim, chunk)
  memory: Any = compiled.memory_analysis()
  figures = {
    'objective': name,
    'form': form,
    'batch': batch,
    'embed_dim': embed_dim,
    'chunk': chunk if form in ('chunked', 'ring') else None,
    # XLA's plan for one device: its peak is that of the temporaries with the
    # features (arguments) and their gradients (outputs).
    'temp_bytes': int(memory.temp_size_in_bytes),
    'peak_bytes': planned_bytes(compiled),
    'seconds': None,
    **device_facts(),
  }
  if figures['peak_bytes'] * len(mesh.local_devices) > free_bytes():
    print(
      f'{form}: compiled, not run: it needs more memory than is free here.',
      file=sys.stderr,
    )
    return figures
  images, texts = (
    jax.device_put(_unit_rows(batch, embed_dim, i), batch_sharding(mesh))
    for i in range(2)
  )
  scale, bias = jnp.float32(1 / 0.07), jnp.float32(0.0)
  figures['seconds'] = median_seconds(
    lambda: jax.block_until_ready(compiled(images, texts, scale, bias)),
    calls,
    max_seconds=_MAX_SECONDS,
  )
  return figures


def compiled_loss(
  name: str, form: str, mesh: Mesh, batch: int, embed_dim: int, chunk: int
) -> jax.stages.Compiled:
  """Compiles a loss and its gradients by all four arguments."""
  loss_fn = make_loss(name, form, mesh, BATCH_AXES, chunk)
  features = jax.ShapeDtypeStruct(
    (batch, embed_dim), jnp.float32, sharding=batch_sharding(mesh)
  )
  scalar = jax.ShapeDtypeStruct((), jnp.float32)
  gradients = jax.value_and_grad(loss_fn, argnums=(0, 1, 2, 3))
  return jax.jit(gradients).lower(features, features, scalar, scalar).compile()


def _unit_rows(rows: int, width: int, seed: int) -> np.ndarray:
  x = np.random.default_rng(seed).normal(size=(rows, width))
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
