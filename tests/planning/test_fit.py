"""The search, over made-up memory: nothing is compiled."""

from typing import Any

import numpy as np
import pytest

from clip_jax.models.kernels import remat_policies
from clip_jax.parallel.mesh import make_mesh
from clip_jax.planning.fit import (
  fastest,
  fsdp_sizes,
  micro_batches,
  plan_of_trials,
  search,
  suggestions,
)
from clip_jax.planning.topology import GIB, parse_topology
from configs import base

TOPOLOGY = parse_topology('v5e:4x4')
# GiB of temporaries for the whole batch, and seconds of a step.
POLICIES = {
  'none': (200, 1.0),
  'dots': (80, 1.1),
  'save_both': (60, 1.15),
  'save_mlp': (40, 1.2),
  'full': (20, 1.3),
}


def config_of(batch_size=1024):
  config: Any = base.get_config()
  config.data.batch_size = batch_size
  return config


def made_up(state_gib, policies=POLICIES, exchange=0.1):
  """A planner whose memory is the state's share and a part of temporaries.

  Each doubling of `mesh.fsdp` makes a step longer by `exchange` seconds.
  """

  def plan_of(config):
    micro = config.objective.micro_batch
    image, text = (
      np.mean([policies[name] for name in remat_policies(remat, 20)], axis=0)
      for remat in (
        config.model.remat,
        config.model.text_remat or config.model.remat,
      )
    )
    temporary, seconds = 0.75 * image + 0.25 * text
    part = (micro or config.data.batch_size) / config.data.batch_size
    held = state_gib / config.mesh.fsdp
    peak = held + temporary * part
    return {
      'fits': peak <= 15.75,
      'peak_bytes_per_chip': int(peak * GIB),
      'hbm_bytes_per_chip': TOPOLOGY.chip.hbm_bytes,
      'memory': {
        'parameters': int(held * GIB),
        'activations_and_temporaries': int(temporary * part * GIB),
      },
      'step_seconds': seconds
      + (0.5 if micro else 0)
      + exchange * np.log2(config.mesh.fsdp),
    }

  return plan_of


def test_what_fits_as_it_is_needs_one_try():
  tries = search(config_of(), TOPOLOGY, made_up(1, {'none': (5, 1.0)}))
  assert [one.setting.remat for one in tries] == ['none']
  assert fastest(tries) is tries[0]


def test_recomputing_comes_before_micro_batches():
  policies = {**POLICIES, 'full': (11.7, 1.3)}
  best = fastest(search(config_of(), TOPOLOGY, made_up(4, policies)))
  assert best is not None
  assert (best.setting.remat, best.setting.micro_batch) == ('full', 0)


def tried(policies):
  trials = search(config_of(), TOPOLOGY, made_up(1, policies))
  trials = [one for one in trials if one.setting.fsdp == 1]
  return trials, [(o.setting.remat, o.setting.text_remat) for o in trials]


def test_free_memory_goes_to_a_share_of_the_blocks_or_to_the_text_tower():
  trials, settings = tried(
    {'none': (40, 1.0), 'dots': (30, 1.1), 'save_both': (10, 1.4)}
  )
  # 4.75 GiB are free, and dots for all blocks needs 20 more.
  assert settings[3:] == [
    ('save_both:0.80,dots', ''),
    ('save_both', 'none'),  # 7.5 GiB more
    ('save_both', 'dots'),  # 5 GiB more
  ]
  assert [one.plan['fits'] for one in trials[3:]] == [True, False, False]
  assert fastest(trials) is trials[3]


def test_what_the_text_tower_leaves_free_goes_to_the_image_tower():
  trials, settings = tried({'none': (40, 1.0), 'dots': (5, 1.4)})
  assert settings[2:] == [
    ('dots:0.75,none', ''),
    ('dots', 'none'),  # 8.75 GiB more: 1 is left, and 35 would be needed
  ]
  trials, settings = tried({'none': (30, 1.0), 'dots': (5, 1.4)})
  assert settings[2:] == [
    ('dots:0.65,none', ''),
    ('dots', 'none'),
    ('dots:0.90,none', 'none'),
  ]
  assert all(one.plan['fits'] for one in trials[1:])


def test_a_share_that_does_not_fit_after_all_becomes_smaller():
  plan_of = made_up(1, {'none': (40, 1.0), 'dots': (5, 1.4)})

  def needing_more(config):
    plan = plan_of(config)
    if ':' in config.model.remat and plan['peak_bytes_per_chip'] > 12 * GIB:
      plan |= {'fits': False, 'peak_bytes_per_chip': 20 * GIB}
    return plan

  trials = search(config_of(), TOPOLOGY, needing_more)
  assert [o.setting.remat for o in trials[2:4]] == [
    'dots:0.75,none',
    'dots:0.85,none',
  ]
  assert trials[3].plan['fits']


def test_of_the_largest_micro_batches_the_fastest_wins():
  tries = search(config_of(), TOPOLOGY, made_up(4))
  best = fastest(tries)
  assert best is not None
  assert (best.setting.remat, best.setting.micro_batch) == ('none', 32)
  tries = [one for one in tries if one.setting.fsdp == 1]
  full = [o.setting.micro_batch for o in tries if o.setting.remat == 'full']
  assert full == [0, 512]
  dots = [o.setting.micro_batch for o in tries if o.setting.remat == 'dots']
  assert dots == [0, 128]


def test_a_state_too_large_is_spread_over_more_devices():
  best = fastest(search(config_of(), TOPOLOGY, made_up(30)))
  assert best is not None
  assert best.setting.fsdp == 4


def sizes_tried(state_gib, **options):
  """The sizes of `mesh.fsdp` in their order, and the one of the fastest."""
  policies = {'none': (40, 1.0), 'dots': (5, 1.4)}
  trials = search(
    config_of(), TOPOLOGY, made_up(state_gib, policies, **options)
  )
  best = fastest(trials)
  assert best is not None
  return list(dict.fromkeys(o.setting.fsdp for o in trials)), best.setting.fsdp


def test_memory_that_a_larger_fsdp_frees_is_used_while_it_makes_steps_faster():
  assert sizes_tried(9, exchange=0.015) == ([1, 4, 16], 4)
  assert sizes_tried(9, exchange=0.001) == ([1, 4, 16], 16)
  assert sizes_tried(9, exchange=0.1) == ([1, 4], 1)


def test_nothing_fits():
  trials = search(config_of(), TOPOLOGY, made_up(1000))
  assert fastest(trials) is None
  plan = plan_of_trials(trials)
  assert plan['flags'] == [] and not plan['fits']
  least = min(one.plan['peak_bytes_per_chip'] for one in trials)
  assert plan['peak_bytes_per_chip'] == least


def test_the_plan_of_the_winner_tells_all_that_was_tried():
  shown = []
  trials = search(config_of(), TOPOLOGY, made_up(4), shown.append)
  assert shown == trials
  plan = plan_of_trials(trials)
  best = fastest(trials)
  assert best is not None
  assert plan['fits'] and plan['flags'] == best.setting.flags
  assert len(plan['tries']) == len(trials)
  assert set(plan['tries'][0]) == {
    'flags', 'fits', 'peak_bytes_per_chip', 'step_seconds'
  }  # fmt: skip


def test_flags_can_be_pasted():
  best = fastest(search(config_of(), TOPOLOGY, made_up(4)))
  assert best is not None
  assert best.setting.flags == [
    '--config.model.remat=none',
    '--config.model.text_remat=',
    '--config.objective.micro_batch=32',
    '--config.mesh.fsdp=1',
  ]
  applied = best.setting.applied(config_of())
  assert applied.objective.micro_batch == 32


@pytest.mark.parametrize(
  ('batch_size', 'expected'), [(64, [32, 16]), (48, []), (16, [])]
)
def test_micro_batches_split_over_all_chips(batch_size, expected):
  assert micro_batches(config_of(batch_size), TOPOLOGY) == expected


def test_fsdp_sizes_divide_a_slice():
  assert list(fsdp_sizes(config_of(), TOPOLOGY)) == [1, 4, 16]
  config = config_of()
  config.mesh.tensor = 2
  assert list(fsdp_sizes(config, TOPOLOGY)) == [1, 4]


@pytest.mark.parametrize(
  'mesh',
  [dict(data=8), dict(data=4, fsdp=-1), dict(data=2, fsdp=2, tensor=-1)],
)
def test_a_mesh_that_is_stated_keeps_its_sizes(mesh):
  config = config_of()
  config.mesh.update(mesh)
  trials = search(config, parse_topology('v5e:2x4'), made_up_of_mesh)
  best = fastest(trials)
  assert best is not None and best.setting.remat == 'full:0.90,save_mlp'
  assert {one.setting.fsdp for one in trials} == {config.mesh.fsdp}


def made_up_of_mesh(config):
  """A planner that refuses what does not fit the devices, as a plan does."""
  sizes = config.mesh
  make_mesh(sizes.data, sizes.fsdp, sizes.tensor)  # of eight devices
  plan = made_up(1, {**POLICIES, 'full': (11.7, 1.3)})
  config.mesh.fsdp = abs(config.mesh.fsdp)
  return plan(config)


def test_micro_batches_split_over_the_chips_that_the_tensor_axis_leaves():
  config = config_of(64)
  config.mesh.update(data=2, fsdp=2, tensor=-1)
  assert micro_batches(config, TOPOLOGY) == [32, 16, 8, 4]


def test_suggestions_are_by_proportion():
  config: Any = config_of()
  config.model.remat = 'full'
  plan = made_up(4)(config)
  result = suggestions(plan, config, TOPOLOGY)
  assert result[0]['flags'] == ['--config.objective.micro_batch=256']
  assert result[1]['chips'] == 64
  assert result[0]['estimated_peak_bytes'] == 9 * GIB
  pod = parse_topology('v5e:16x16')
  [*_, slices] = suggestions(plan, config, pod)
  assert slices['flags'] == ['--config.mesh.slices=4']
