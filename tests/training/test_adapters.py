"""Runs that train low-rank adapters of another run's model."""

import re
import shutil

import jax
import numpy as np
import pytest

import clip_jax
from clip_jax.checkpoints.reading import load_variables
from clip_jax.errors import UsageError
from clip_jax.models.lora import is_adapter
from clip_jax.training.loop import train
from clip_jax.training.run import complete_config, prepare_run
from clip_jax.training.writers import Outputs
from clip_jax.trees import flat
from tests.tiny import tiny_config, write_pairs
from tests.tiny_run import write_run

ATTENTION = re.compile('(image|text)/transformer/blocks/attention/.*/kernel')


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """A model, its config, and a run of adapters that started from it."""
  folder = tmp_path_factory.mktemp('adapters')
  start = write_run(folder / 'start')
  config = tiny_config()
  config.initialize_from = str(start)
  config.data.train = write_pairs(folder / 'pairs')
  config.total_steps = 6
  config.checkpoint.every_steps = 3
  config.optimizer.update(learning_rate=0.02, warmup_steps=1)
  config.model.lora.rank = 2
  train(config, folder / 'run', Outputs())
  return start, config, folder / 'run'


def test_all_but_the_adapters_stays_bit_by_bit(runs):
  start, _, run = runs
  before = flat(load_variables(start)[0]['params'])
  after = flat(load_variables(run)[0]['params'])
  assert {name for name in after if is_adapter(name)} == {*after} - {*before}
  for name, leaf in before.items():
    np.testing.assert_array_equal(after[name], leaf)
  moved = [leaf.any() for name, leaf in after.items() if name.endswith('/b')]
  assert len(moved) == 4
  assert all(moved)


def test_what_loads_is_merged(runs):
  start, _, run = runs
  base, tuned = clip_jax.load(start), clip_jax.load(run)
  assert tuned.description == base.description
  after = flat(tuned.params)
  for name, leaf in flat(base.params).items():
    same = np.array_equal(leaf, after[name])
    assert same != bool(ATTENTION.fullmatch(name)), name


def test_a_resumed_run_ends_with_the_same_bits(runs, tmp_path):
  _, config, run = runs
  again = tmp_path / 'run'
  shutil.copytree(run, again)
  shutil.rmtree(again / 'checkpoints' / '6')
  assert train(config, again, Outputs()).step == 6
  jax.tree.map(
    np.testing.assert_array_equal,
    load_variables(again)[0],
    load_variables(run)[0],
  )


def test_adapters_of_random_weights_are_refused(runs):
  config = runs[1].copy_and_resolve_references()
  config.initialize_from = ''
  with pytest.raises(UsageError, match='name the model in initialize_from'):
    complete_config(config)
  config.optimizer.groups = (('*', 1.0),)
  assert complete_config(config).config.model.lora.rank == 2


def test_only_what_is_trained_has_moments(runs):
  _, config, _ = runs
  start = complete_config(config)
  program = prepare_run(start.config, start.inherited).program
  leaves = jax.tree.leaves(program.state.opt_state)
  adapters = [v for k, v in flat(program.state.params).items() if is_adapter(k)]
  arrays = [leaf for leaf in leaves if leaf.ndim]
  assert len(arrays) == 2 * len(adapters)
  assert sum(x.size for x in arrays) == 2 * sum(x.size for x in adapters)
