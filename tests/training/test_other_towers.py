"""A ResNet and a SigLIP-shaped model train as the usual pair does."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import clip_jax
from clip_jax.checkpoints.reading import load_variables
from clip_jax.data.images import preprocess
from clip_jax.data.preprocessing import CLIP_MEAN, CLIP_STD
from clip_jax.models.dual_encoder import normalize, unit_length
from clip_jax.parallel.mesh import batch_sharding
from clip_jax.training.config import with_defaults
from clip_jax.training.evaluations import evaluate, model_of
from clip_jax.training.loop import train
from clip_jax.training.run import prepare_run
from tests.tiny import (
  TINY_RESNET,
  TINY_SIGLIP,
  tiny_resnet_config,
  tiny_siglip_config,
  write_pairs,
)
from tests.training.test_step import (
  ONE,
  compiled_step,
  mesh_of,
  on_its_first_state,
  tiny_batch,
)

CONFIGS = {'resnet': TINY_RESNET, 'siglip': TINY_SIGLIP}
RNG = np.random.default_rng(5)
IMAGES = RNG.integers(0, 256, (6, 40, 36, 3), dtype=np.uint8)


def history_of(step, state, mesh, size):
  """Metrics of two steps, and the last state."""
  history = []
  for i in range(2):
    batch = jax.device_put(tiny_batch(i, size), batch_sharding(mesh))
    state, metrics = step(state, batch)
    history.append({name: float(x) for name, x in metrics.items()})
  return history, state


def steps(config, sizes=ONE, **options):
  """Two steps on a mesh of their own."""
  mesh = mesh_of(sizes)
  step, state = compiled_step(mesh, config=config, **options)
  return history_of(step, state, mesh, config.image.image_size)


@functools.cache
def on_one_device(name):
  """What every other way of computing the same has to give."""
  config = CONFIGS[name]
  first = on_its_first_state(config=config)
  return history_of(*first, mesh_of(ONE), config.image.image_size)


def assert_close(ours, theirs, rtol=1e-3, atol=1e-5):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
    jax.device_get(ours),
    jax.device_get(theirs),
  )


@pytest.mark.slow
@pytest.mark.parametrize('name', CONFIGS)
def test_the_loss_falls_on_a_batch_that_is_seen_again(name):
  step, state = on_its_first_state(config=CONFIGS[name])
  batch = tiny_batch(0, CONFIGS[name].image.image_size)
  losses = []
  for _ in range(30):
    state, metrics = step(state, batch)
    losses.append(float(metrics['loss']))
  assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
def test_a_step_moves_the_running_statistics_and_counts_it():
  step, state = on_its_first_state(config=TINY_RESNET)
  batch = tiny_batch(0, image_size=32)
  kernel = state.params['image']['stem']['conv1']['kernel']
  maps = np.asarray(
    jax.lax.conv_general_dilated(
      normalize(jnp.asarray(batch['image']), CLIP_MEAN, CLIP_STD), kernel,
      (2, 2), [(1, 1)] * 2, dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
  ).reshape(-1, kernel.shape[-1])  # fmt: skip
  after, _ = step(state, batch)
  stem = after.batch_stats['image']['stem']['bn1']
  np.testing.assert_allclose(
    stem['mean'], 0.1 * maps.mean(0), rtol=1e-3, atol=1e-6
  )
  np.testing.assert_allclose(
    stem['var'], 0.9 + 0.1 * maps.var(0, ddof=1), rtol=1e-4
  )
  counts = [
    int(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(after.batch_stats)
    if path[-1].key == 'count'
  ]
  assert counts == [1] * (3 + 4 * 4)  # the stem's, and each block's


@pytest.mark.slow
@pytest.mark.parametrize('name', CONFIGS)
def test_a_mesh_of_three_axes_trains_as_one_device(name):
  """Statistics are of the global batch: those of a device's rows differ."""
  expected, one = on_one_device(name)
  history, state = steps(CONFIGS[name], (2, 2, 2, 1))
  assert_close(history, expected)
  assert_close(state.batch_stats, one.batch_stats)
  for leaf in jax.tree.leaves(state.batch_stats):
    assert leaf.sharding.is_fully_replicated


@pytest.mark.slow
def test_remat_changes_no_number():
  """A block computed again must not count its batch again."""
  expected, kept = on_one_device('resnet')
  history, state = steps(TINY_RESNET, remat='full')
  assert_close(history, expected)
  assert_close(state.batch_stats, kept.batch_stats)


@pytest.mark.slow
def test_a_resnet_in_bfloat16_keeps_its_statistics_in_float32():
  step, state = compiled_step(
    mesh_of(ONE), config=TINY_RESNET, dtype=jnp.bfloat16
  )
  after, _ = jax.eval_shape(step, state, tiny_batch(0, image_size=32))
  dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(after.batch_stats)}
  assert dtypes == {'float32', 'int32'}


@pytest.mark.slow
def test_a_softmax_leaves_the_bias_alone():
  _, state = on_one_device('siglip')
  assert float(state.params['logit_bias']) == -10.0
  moment = optax.tree.get(state.opt_state, 'mu')
  assert np.abs(moment['image']['attention_pool']['probe']).max() > 0


def finished(folder, config):
  """A run of twelve steps and three checkpoints, in `folder / 'run'`."""
  config.data.train = write_pairs(folder / 'pictures')
  config.evaluation.update(
    every_steps=0, tasks=('retrieval',), data=config.data.train
  )
  outcome = train(config, folder / 'run')
  assert outcome.finished
  return outcome, folder / 'run', config


@pytest.fixture(scope='module')
def resnet_run(tmp_path_factory):
  return finished(tmp_path_factory.mktemp('resnet'), tiny_resnet_config())


@pytest.fixture(scope='module')
def siglip_run(tmp_path_factory):
  return finished(tmp_path_factory.mktemp('siglip'), tiny_siglip_config())


@pytest.mark.slow
def test_a_resumed_resnet_ends_with_the_same_bits(resnet_run, tmp_path):
  _, workdir, config = resnet_run
  again = tmp_path / 'run'
  shutil.copytree(workdir, again)
  for step in (8, 12):
    shutil.rmtree(again / 'checkpoints' / str(step))
  assert train(config, again).step == 12
  ours, theirs = load_variables(again)[0], load_variables(workdir)[0]
  assert set(ours) == {'params', 'batch_stats'}
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  count = ours['batch_stats']['image']['stem']['bn1']['count']
  assert int(count) == 12


@pytest.mark.slow
def test_what_is_loaded_of_a_resnet_computes_with_running_statistics(
  resnet_run,
):
  _, workdir, _ = resnet_run
  model = clip_jax.load(workdir)
  features = model.encode_image(IMAGES)
  variables, description, _ = load_variables(workdir)
  assert description.model.image == TINY_RESNET.image
  pixels = np.stack([preprocess(p, model.preprocessing) for p in IMAGES])
  images = normalize(
    jnp.asarray(pixels), model.preprocessing.mean, model.preprocessing.std
  )
  expected = unit_length(
    model.module.apply(variables, images, method='encode_image')
  )
  np.testing.assert_allclose(features, expected, atol=1e-5)
  by_the_batch, _ = model.module.apply(
    variables, images, True, method='encode_image', mutable='batch_stats'
  )
  difference = np.abs(features - unit_length(by_the_batch))
  assert difference.max() > 1e-2  # else this test would prove nothing
  alone = np.concatenate([model.encode_image(p) for p in IMAGES])
  np.testing.assert_allclose(alone, features, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['resnet', 'siglip'])
def test_evaluation_in_training_is_that_of_the_loaded_model(kind, request):
  outcome, workdir, config = request.getfixturevalue(f'{kind}_run')
  run = prepare_run(with_defaults(config))
  loaded = clip_jax.load(workdir)
  variables, _, step = load_variables(workdir)
  state = dataclasses.replace(
    run.program.state,
    step=jnp.int32(step),
    params=variables['params'],
    batch_stats=variables.get('batch_stats', {}),
  )
  inside = model_of(run, state)
  np.testing.assert_allclose(
    inside.encode_image(IMAGES), loaded.encode_image(IMAGES), atol=1e-5
  )
  texts = ['picture number 3', 'picture number 11']
  np.testing.assert_allclose(
    inside.encode_text(texts), loaded.encode_text(texts), atol=1e-5
  )
  metrics = evaluate(run, model_of(run, state))['retrieval'].metrics
  for name, value in metrics.items():
    assert outcome.metrics[f'eval/retrieval/{name}'] == value


@pytest.mark.slow
def test_a_siglip_shaped_run_keeps_its_bias(siglip_run):
  _, workdir, _ = siglip_run
  model = clip_jax.load(workdir)
  assert model.config.image == TINY_SIGLIP.image
  assert model.logit_bias == -10.0
  assert model.logit_scale != pytest.approx(10.0, rel=1e-6)  # it is trained
  labels = ['picture number 3', 'picture number 11']
  independent = model.classify(IMAGES, labels, independent=True)
  cosines = model.encode_image(IMAGES) @ model.encode_text(labels).T
  logits = model.logit_scale * cosines - 10.0
  np.testing.assert_allclose(independent, 1 / (1 + np.exp(-logits)), rtol=1e-4)
