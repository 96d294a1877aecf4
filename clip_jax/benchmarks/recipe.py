"""The optimizer that is measured: the paper's for a ViT (table 18)."""

import optax

from clip_jax.training.optimizer import make_optimizer


def paper_optimizer(
  total_steps: int,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """The update rule and its learning rate by step, for a few steps."""
  return make_optimizer(
    total_steps,
    learning_rate=5e-4,
    schedule='cosine',
    warmup_steps=1,
    weight_decay=0.2,
    b1=0.9,
    b2=0.98,
    eps=1e-6,
    clip_norm=0.0,
    mu_dtype='float32',
    nu_dtype='float32',
  )
