"""Eight pretend devices, and jaxtyping's shapes checked at every call."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
from jaxtyping import install_import_hook

jax.config.update('jax_num_cpu_devices', 8)
# Kept to the end of the session: modules are checked as they are imported.
install_import_hook('clip_jax', 'beartype.beartype')
