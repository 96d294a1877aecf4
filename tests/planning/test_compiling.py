"""Whole plans of a tiny model: really compiled, by libtpu, in a child."""

import importlib
import importlib.util
import json
import types

import jax
import pytest

from clip_jax.data.preprocessing import Preprocessing
from clip_jax.errors import UsageError
from clip_jax.planning import child
from clip_jax.planning.compiling import (
  abstract_batch,
  held_bytes,
  memory_of,
  needed_bytes,
  plan_teachers,
  planned_model,
)
from clip_jax.planning.plan import describe, make_plan
from clip_jax.planning.topology import GIB, parse_topology
from clip_jax.training.config import check_devices
from clip_jax.training.program import build_train_program
from clip_jax.training.run import complete_config
from clip_jax.trees import flat
from configs import base, lit_b16, siglip2_b16
from tests.golden_models import GOLDENS
from tests.tiny import TINY, tiny_config

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='libtpu, of the extra `plan`, is not installed',
)


def config_of(**model):
  """A tiny model that needs no tokenizer file."""
  config = tiny_config()
  config.tokenizer = 'sentencepiece:nowhere.model'
  config.model.text.vocab_size = 64
  config.model.update(model)
  return config


def test_a_missing_tokenizer_counts_as_many_tokens_as_the_config_says():
  assert planned_model(config_of()).text.vocab_size == 64
  config = tiny_config()
  config.tokenizer = 'siglip:nowhere.model'
  config.model.preset = 'ViT-B-16-SigLIP'
  for tower in ('image', 'text'):
    for name in config.model[tower]:
      config.model[tower][name] = None
  config.model.embed_dim = None
  assert planned_model(config).text.vocab_size == 32_000
  config = tiny_config()
  config.tokenizer = 'sentencepiece:nowhere.model'
  with pytest.raises(UsageError, match=r'say model.text.vocab_size'):
    planned_model(config)


def test_a_plan_starts_from_a_model_as_a_run_does():
  """Its tokenizer need not be known: only how many tokens it has."""
  config = base.get_config()
  config.initialize_from = str(GOLDENS / 'open_clip_vit_gelu')
  result = complete_config(config)
  assert planned_model(result.config) == result.inherited.model


def test_the_program_says_what_a_chip_holds():
  config = config_of()
  config.mesh.fsdp = 4
  made = build_train_program(
    config, check_devices(config), TINY, Preprocessing(image_size=16)
  )
  held = held_bytes(made, abstract_batch(made, TINY, 16))
  whole = sum(x.size * 4 for x in jax.tree.leaves(made.state.params))
  assert whole / 4 <= held['parameters'] < whole / 2
  assert held['optimizer'] == 2 * held['parameters'] + 3 * 4
  assert held['batch'] == 16 // 8 * (16 * 16 * 3 + 4 * 8)


def test_a_chip_holds_no_moments_of_what_is_frozen():
  held = {}
  for name, groups in (
    ('all', ()),
    ('text', (('image*', 0.0), ('*', 1.0))),
    ('last', (('image/*blocks[-1:]', 1.0), ('image*', 0.0), ('*', 1.0))),
  ):
    config = config_of()
    config.optimizer.update(groups=groups, ema_decay=0.9)
    made = build_train_program(
      config, check_devices(config), TINY, Preprocessing(image_size=16)
    )
    held[name] = held_bytes(made, abstract_batch(made, TINY, 16))
  frozen, blocks = (
    sum(
      leaf.size * 4
      for path, leaf in flat(made.state.params).items()
      if path.startswith('image') and part in path
    )
    for part in ('', 'image/transformer/blocks')
  )
  for name, moments in (('text', frozen), ('last', frozen - blocks // 2)):
    saved = held['all']['optimizer'] - held[name]['optimizer']
    assert saved == 2 * moments
    assert held[name]['parameters'] == held['all']['parameters']
  averages = {name: bytes['averaged_weights'] for name, bytes in held.items()}
  assert averages['all'] == held['all']['parameters']
  assert averages['all'] - averages['text'] == frozen
  assert averages['all'] - averages['last'] == frozen - blocks


def test_a_plan_needs_no_teachers_but_knows_how_wide_they_are():
  config = importlib.import_module('configs.mobileclip_b16').get_config()
  assert plan_teachers(config) == [768, 768]
  assert config.objective.teacher_scales == (100.0, 100.0)
  config = config_of()
  config.data.update(teachers=('nowhere',), views=2)
  config.objective.added.distillation = 1.0
  dims = plan_teachers(config)
  made = build_train_program(
    config, check_devices(config), TINY, Preprocessing(image_size=16)
  )
  batch = abstract_batch(made, TINY, 16, teacher_dims=dims)
  assert batch['teacher_0_texts'].shape == (16, 768)
  held = held_bytes(made, batch)
  assert held['batch'] == 16 // 8 * (16 * 16 * 3 + 4 * 8 + 2 * 4 * 768)
  made.train_step.lower(made.state, batch)


def test_memory_adds_up_to_the_compilers_own():
  """As libtpu 0.0.42 says it of a step with a donated state: its temporaries
  count the new state, which takes the place of the old one."""
  analysis = types.SimpleNamespace(
    argument_size_in_bytes=234_881_024,
    alias_size_in_bytes=201_326_592,
    temp_size_in_bytes=5_234_717_184,
    peak_memory_in_bytes=5_268_051_456,
    generated_code_size_in_bytes=3_126_784,
  )
  held = {'parameters': 201_326_592, 'optimizer': 0, 'batch': 33_554_000}
  memory = memory_of(analysis, held)
  assert sum(memory.values()) == 5_268_051_456 + 3_126_784
  assert memory['padding'] == 432
  assert memory['program'] == 3_126_784


@pytest.mark.parametrize(
  ('message', 'expected'),
  [
    (
      'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, '
      'the total memory required for HLO temporaries (54.5G) exceeds available '
      'HBM (15.75G). HLO module: jit_train_step.',
      int(54.5 * GIB),
    ),
    (
      'RESOURCE_EXHAUSTED: the total memory required for HLO temporaries '
      '(1.25T) exceeds available HBM (15.75G).',
      1280 * GIB,
    ),
    (
      'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.5G '
      'of 15.75G hbm. Exceeded hbm capacity by 4.75G.',
      int(20.5 * GIB),
    ),
    ('INTERNAL: HLO temporaries (54.5G) exceeds available HBM', None),
  ],
)
def test_what_libtpu_says_of_a_program_that_is_too_large(message, expected):
  assert needed_bytes(message) == expected


def test_without_libtpu_one_line_says_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UsageError, match=r'pip install "\.\[plan\]"'):
    child.check_libtpu()


@needs_libtpu
@pytest.mark.slow
def test_a_plan_of_a_tiny_model():
  config = config_of(dtype='bfloat16')
  config.mesh.fsdp = 2
  plan = make_plan(config, parse_topology('v5e:2x2'))
  assert plan['fits']
  assert plan['chips'] == 4
  assert plan['peak_bytes_per_chip'] == sum(plan['memory'].values())
  assert plan['peak_bytes_per_chip'] < plan['hbm_bytes_per_chip']
  assert plan['flops_per_chip'] > 0
  assert {'data'} <= {a for c in plan['collectives'] for a in c['axes']}
  assert 0 < plan['step_seconds'] < 1
  assert 0 < plan['mfu'] < 1
  json.dumps(plan)


@needs_libtpu
@pytest.mark.slow
def test_a_plan_of_a_locked_image_tower_has_less_to_do():
  """The recipe of LiT, shrunken."""
  config = config_of(dtype='bfloat16')
  plans = []
  for groups in (lit_b16.get_config().optimizer.groups, ()):
    config.optimizer.groups = groups
    plans.append(make_plan(config, parse_topology('v5e:2x2')))
  locked, whole = plans
  assert locked['fits']
  for name in ('optimizer', 'activations_and_temporaries'):
    assert locked['memory'][name] < whole['memory'][name]
  assert locked['flops_per_chip'] < whole['flops_per_chip']


@needs_libtpu
@pytest.mark.slow
def test_a_plan_of_siglip_2_has_both_parts_of_the_run():
  """The recipe, shrunken."""
  config = siglip2_b16.get_config()
  config.model.preset = ''
  config.model.update(
    embed_dim=128, initial_logit_scale=10.0, initial_logit_bias=-10.0
  )
  for part in ('image', 'text', 'decoder'):
    config.model[part].update(width=128, depth=2, heads=2)
  config.model.image.update(
    patch_size=16, pooling='attention', class_token=False, pre_norm=False,
    projection='none',
  )  # fmt: skip
  config.model.text.update(vocab_size=64, context_length=8, causal=False)
  config.data.batch_size, config.total_steps = 16, 100
  config.optimizer.warmup_steps = 10
  config.data.image_size = 64
  config.objective.self_distillation.update(
    local_size=32, hidden=128, features=128, prototypes=256
  )
  config.mesh.fsdp = 2
  plan = make_plan(config, parse_topology('v5e:2x2'))
  assert plan['fits']
  assert plan['memory']['momentum_teacher'] > 0
  later = plan['later']
  assert later['after_steps'] == 80
  assert later['step_seconds'] > plan['step_seconds']
  seconds = 80 * plan['step_seconds'] + 20 * later['step_seconds']
  assert plan['chip_hours'] == pytest.approx(seconds / 3600 * 4)
  assert 'after 80 steps, with all terms of the loss: ' in describe(
    'siglip2', plan
  )


@needs_libtpu
@pytest.mark.slow
def test_a_plan_of_too_large_a_model():
  config = config_of()
  config.model.text.update(vocab_size=200_000, width=65_536, depth=1)
  plan = make_plan(config, parse_topology('v5e:2x2'))
  assert not plan['fits']
  assert plan['peak_bytes_per_chip'] > plan['hbm_bytes_per_chip']
  assert plan['memory']['parameters'] > 40e9
  assert plan['step_seconds'] is None
  assert plan['collectives'] == []


@needs_libtpu
@pytest.mark.slow
def test_a_config_that_cannot_work_is_refused_before_compiling():
  config = config_of()
  config.data.batch_size = 6
  seconds = []
  with pytest.raises(UsageError, match='use a multiple of 4'):
    child.measure_in_child(config, parse_topology('v5e:2x2'), seconds.append)
  assert not seconds
  with pytest.raises(UsageError, match='not divisible'):
    child.measure_in_child(config, parse_topology('v5e:3x3'))


@needs_libtpu
@pytest.mark.slow
def test_several_slices_exchange_over_the_slice_axis():
  config = config_of()
  config.mesh.slices = 2
  plan = make_plan(config, parse_topology('v5e:2x2', slices=2))
  assert plan['chips'] == 8
  assert any('slice' in c['axes'] for c in plan['collectives'])
