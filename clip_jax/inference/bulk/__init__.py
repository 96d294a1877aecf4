"""Shards as the evaluation still has them; see `clip_jax.inference.shards`."""
