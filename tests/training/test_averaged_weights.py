"""Moving averages of the weights: kept, saved, evaluated, and loaded."""

import shutil

import jax
import numpy as np
import pytest

import clip_jax
from clip_jax.checkpoints.reading import load_variables
from clip_jax.parallel.mesh import batch_sharding
from clip_jax.training.config import with_defaults
from clip_jax.training.evaluations import model_of
from clip_jax.training.loop import train
from clip_jax.training.run import initial_state, prepare_run
from clip_jax.trees import flat
from tests.tiny import tiny_config, write_pairs
from tests.training.test_step import ONE, compiled_step, mesh_of, tiny_batch

DECAY = 0.75
LAST_FREE = (
  ('image/transformer/blocks[-1:]', 1.0),
  ('image', 0.0),
  ('*', 1.0),
)


def steps(sizes=ONE, count=3, **rule):
  """The states of some steps, as numpy arrays."""
  mesh = mesh_of(sizes)
  step, state = compiled_step(mesh, rule={'ema_decay': DECAY, **rule})
  shardings = jax.tree.map(lambda x: x.sharding, (state.params, state.ema))
  states = [jax.tree.map(np.array, state)]
  for i in range(count):
    state, _ = step(state, jax.device_put(tiny_batch(i), batch_sharding(mesh)))
    states.append(jax.tree.map(np.array, state))
  return states, shardings


def test_averages_follow_the_weights_by_the_formula():
  states, _ = steps()
  expected = flat(states[0].params)
  for state in states[1:]:
    for name, new in flat(state.params).items():
      expected[name] = DECAY * expected[name] + (1 - DECAY) * new
  last = states[-1]
  for name, mean in flat(last.ema).items():
    np.testing.assert_allclose(mean, expected[name], rtol=1e-5, atol=1e-7)
    assert not np.array_equal(mean, flat(last.params)[name])
  evaluated = last.variables['params']
  jax.tree.map(np.testing.assert_array_equal, evaluated, last.ema)


@pytest.mark.slow
def test_nothing_is_averaged_of_what_is_frozen():
  states, _ = steps(groups=LAST_FREE)
  names = flat(states[-1].ema)
  image = [name for name in names if name.startswith('image/')]
  assert image and all('/blocks/' in name for name in image)
  for name in image:  # the first block is frozen
    np.testing.assert_array_equal(
      names[name][0], flat(states[0].params)[name][0]
    )
    assert not np.array_equal(names[name][1], flat(states[0].params)[name][1])
  evaluated = states[-1].variables['params']
  assert flat(evaluated).keys() == flat(states[0].params).keys()


@pytest.mark.slow
def test_averages_lie_where_their_parameters_do():
  states, (params, ema) = steps((1, 2, 4, 1))
  assert jax.tree.leaves(params) == jax.tree.leaves(ema)
  one, _ = steps()
  for ours, theirs in zip(
    jax.tree.leaves(states[-1].ema), jax.tree.leaves(one[-1].ema), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


def config_with_averages(folder):
  config = tiny_config()
  config.data.train = write_pairs(folder / 'pictures')
  config.evaluation.update(
    every_steps=0, tasks=('retrieval',), data=config.data.train
  )
  config.optimizer.ema_decay = 0.9
  return config


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A finished run, its config and its last evaluation."""
  folder = tmp_path_factory.mktemp('averages')
  config = config_with_averages(folder)
  outcome = train(config, folder / 'run')
  return folder / 'run', config, outcome


@pytest.mark.slow
def test_a_model_of_a_run_has_the_averages_and_raw_the_weights(run):
  workdir, _, outcome = run
  averaged, raw = (
    clip_jax.load(workdir, weights=weights) for weights in (None, 'raw')
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    raw.params,
    load_variables(workdir, averaged=False)[0]['params'],
  )
  kernels = [
    model.params['text_projection']['kernel'] for model in (averaged, raw)
  ]
  assert not np.array_equal(*kernels)
  from clip_jax.data.sources import open_source
  from clip_jax.evaluation import Options, find_evaluator
  from clip_jax.evaluation.dataset import dataset_of

  source = dataset_of(open_source(run[1].data.train))
  for model, is_equal in ((averaged, True), (raw, False)):
    metrics = find_evaluator('retrieval')(model, source, Options()).metrics
    same = [
      outcome.metrics[f'eval/retrieval/{name}'] == pytest.approx(value)
      for name, value in metrics.items()
      if f'eval/retrieval/{name}' in outcome.metrics
    ]
    assert same and (not is_equal or all(same))


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_averages(run, tmp_path):
  workdir, config, _ = run
  again = tmp_path / 'run'
  shutil.copytree(workdir, again)
  shutil.rmtree(again / 'checkpoints' / '12')
  assert train(config, again).finished
  jax.tree.map(
    np.testing.assert_array_equal,
    load_variables(again)[0],
    load_variables(workdir)[0],
  )


@pytest.mark.slow
def test_averages_begin_with_the_weights_of_initialize_from(run, tmp_path):
  from clip_jax.training.run import complete_config

  workdir, config, _ = run
  config = config.copy_and_resolve_references()
  config.initialize_from = str(workdir)
  start = complete_config(config)
  prepared = prepare_run(start.config, start.inherited)
  state = initial_state(prepared.program, 0, start)
  jax.tree.map(np.testing.assert_array_equal, state.ema, state.params)
  jax.tree.map(
    np.testing.assert_array_equal,
    state.params,
    load_variables(workdir)[0]['params'],
  )
  model = model_of(prepared, state)
  assert model.params.keys() == state.params.keys()
  assert with_defaults(config).optimizer.ema_decay == 0.9
