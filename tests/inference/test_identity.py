"""A model's fingerprint: the same for the same parameters, and only then."""

import jax.numpy as jnp
import numpy as np

from clip_jax.inference.identity import fingerprint


def _params():
  return {'a': {'w': np.arange(20_000.0).reshape(100, 200)}, 'b': np.ones(3)}


def test_it_does_not_depend_on_where_the_arrays_are():
  params = {'w': np.float32([[1, 2], [3, 4]])}
  assert fingerprint(params) == fingerprint({'w': jnp.asarray(params['w'])})
  assert len(fingerprint(params)) == 32


def test_every_difference_shows():
  seen = {fingerprint(_params())}
  scaled, renamed, cast, reshaped = (_params() for _ in range(4))
  scaled['a']['w'] *= 1.0001
  renamed['c'] = renamed.pop('b')
  cast['b'] = cast['b'].astype(np.float32)
  reshaped['a']['w'] = reshaped['a']['w'].reshape(200, 100)
  for params in (scaled, renamed, cast, reshaped):
    seen.add(fingerprint(params))
  assert len(seen) == 5
