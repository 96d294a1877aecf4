"""The fingerprint of a model, under the name that the evaluation imports."""

from clip_jax.inference.identity import fingerprint as fingerprint
