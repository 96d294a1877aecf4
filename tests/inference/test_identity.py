"""A model's fingerprint: the same for the same parameters, and only then."""

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np

from clip_jax.inference.identity import fingerprint, model_identity
from tests.tiny import TINY, TINY_RESNET


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


def _model(config=TINY, **collections):
  variables = {'params': _params(), **collections}
  return SimpleNamespace(
    variables=variables, config=config, origin='here', step=None
  )


def test_what_the_parameters_do_not_say_shows():
  image, text = TINY.image, TINY.text
  configs = [
    TINY,
    dataclasses.replace(TINY, image=dataclasses.replace(image, heads=2)),
    dataclasses.replace(TINY, text=dataclasses.replace(text, norm_eps=1e-6)),
    dataclasses.replace(TINY, text=dataclasses.replace(text, pooling='last')),
  ]
  seen = [model_identity(_model(config)) for config in configs]
  for value in (0.0, 1.0):
    statistics = {'mean': np.full(3, value)}
    seen.append(model_identity(_model(TINY_RESNET, batch_stats=statistics)))
  assert all(seen.count(identity) == 1 for identity in seen)
  assert len({identity['model'] for identity in seen}) == 1


def test_what_training_starts_with_does_not_show():
  other = dataclasses.replace(TINY, initial_logit_scale=10.0)
  assert model_identity(_model(other)) == model_identity(_model())
