"""`clip-jax plan`, with a compiler that answers at once."""

import sys
from pathlib import Path

import pytest

from clip_jax.commands.plan import _Waiting
from clip_jax.planning import child
from clip_jax.planning.compiling import planned_model
from clip_jax.planning.topology import GIB

ROOT = Path(__file__).parents[2]
CONFIG = '--config=configs/vit_b32.py'
TOPOLOGY = '--topology=v5e:4x4'


def measured(config, topology, on_second):
  """A compilation that needs a GiB for each 2,048 pairs at a time."""
  on_second(0.0)
  pairs = config.objective.micro_batch or config.data.batch_size
  temporary = pairs * GIB // 2048
  peak = temporary + GIB
  result = {
    'model': planned_model(config).to_dict(),
    'fits': peak <= topology.chip.hbm_bytes,
    'peak_bytes_per_chip': peak,
    'memory': {'parameters': GIB, 'activations_and_temporaries': temporary},
  }
  if not result['fits']:
    return result
  exchange = {
    'op': 'all-reduce',
    'axes': ['data'],
    'group_size': 16,
    'bytes': 10**6,
    'count': 12,
    'overlapped': False,
    'seconds': 1e-3,
  }
  return {
    **result,
    'flops_per_chip': 10**12,
    'hbm_bytes_accessed_per_chip': 10**9,
    'collectives': [exchange],
    'matrix_seconds': 0.2,
    'hbm_seconds': 0.1,
    'compute_seconds': 0.25,
    'collective_seconds': 1e-3,
    'step_seconds': 0.5,
    'matrix_seconds_by_shape': 0.15,
    'compute_seconds_by_shape': 0.2,
    'step_seconds_by_shape': 0.4,
  }


@pytest.fixture(autouse=True)
def compiler(monkeypatch):
  monkeypatch.setattr(child, 'check_libtpu', lambda: None)
  monkeypatch.setattr(child, 'measure_in_child', measured)


def test_a_plan_that_fits_as_json(clip_jax):
  result = clip_jax(
    'plan', CONFIG, TOPOLOGY, '--json', '--config.data.batch_size=4096'
  )
  assert result.code == 0
  plan = result.json
  assert plan['config'] == 'configs/vit_b32.py'
  assert plan['fits'] is True
  assert plan['peak_bytes_per_chip'] == 3 * GIB
  assert plan['hbm_bytes_per_chip'] == int(15.75 * GIB)
  assert plan['flops_per_chip'] == 10**12
  assert plan['mfu'] == pytest.approx(4096 * 41.4e9 / 0.5 / 16 / 197e12, 0.01)
  assert plan['step_seconds_by_shape'] == 0.4
  assert plan['mfu_by_shape'] == pytest.approx(plan['mfu'] * 0.5 / 0.4)
  assert plan['days'] == pytest.approx(0.5 * 390_625 / 86_400)
  assert plan['chip_hours'] == pytest.approx(16 * 24 * plan['days'])
  assert 'compiling for 16 chips of v5e:4x4' in result.err


def test_a_plan_that_does_not_fit_says_what_would(clip_jax):
  result = clip_jax('plan', CONFIG, TOPOLOGY, '--json')
  assert result.code == 0
  plan = result.json
  assert plan['fits'] is False
  assert plan['step_seconds'] is None
  assert plan['step_seconds_by_shape'] is None
  assert plan['mfu_by_shape'] is None
  batches, slices = plan['suggestions']
  assert batches['flags'] == ['--config.objective.micro_batch=16384']
  assert slices['chips'] == 32


def test_a_plan_in_words(clip_jax):
  out = clip_jax('plan', CONFIG, TOPOLOGY, '--config.data.batch_size=4096').out
  assert 'fits: 3.0 of 15.8 GiB, 500 ms a step' in out
  assert 'MFU 11%; by shape 400 ms, MFU 13%' in out
  [row] = [line for line in out.splitlines() if 'matrix products' in line]
  assert row.split()[-4:] == ['200', 'ms', '150', 'ms']
  assert 'all-reduce' in out
  assert '390,625 steps take 2.3 days' in out
  assert max(map(len, out.splitlines())) <= 120
  out = clip_jax('plan', CONFIG, TOPOLOGY).out
  assert 'does not fit: 17.0 of 15.8 GiB' in out
  assert 'in proportion to this plan): --config.objective.micro_batch=' in out


def test_the_search_prints_flags_to_paste(clip_jax):
  result = clip_jax('plan', CONFIG, TOPOLOGY, '--fit')
  assert result.code == 0
  assert '--config.objective.micro_batch=16384' in result.out
  assert 'try 1: ' in result.err
  plan = clip_jax('plan', CONFIG, TOPOLOGY, '--fit', '--json').json
  assert plan['fits']
  assert '--config.mesh.fsdp=1' in plan['flags']
  assert len(plan['tries']) > 1


def test_all_recipes_are_rows_of_a_table(clip_jax):
  lines = clip_jax('plan', '--all').out.strip().splitlines()
  assert lines[0].startswith('| recipe | topology |')
  rows = [line for line in lines if line.startswith('| `configs/')]
  named = [row.split('`')[1] for row in rows]
  assert len(named) == len(set(named)) == len(lines) - 2
  assert {name.partition(':')[0] for name in named} == {
    f'configs/{path.name}'
    for path in (ROOT / 'configs').glob('*.py')
    if 'TOPOLOGY = ' in path.read_text()
  }
  for stage in ('pretrain', 'finetune'):
    assert f'configs/clipa_h14.py:{stage}' in named
  assert 'configs/clipa_h14.py' not in named
  [fits] = [row for row in rows if '`configs/finetune.py`' in row]
  assert '| 500 ms | 400 ms |' in fits
  assert len({line.count('|') for line in lines}) == 1


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    ([], 'plan needs --config'),
    ([CONFIG, '--all'], 'not both'),
    (['--all', '--fit'], '--all cannot be combined'),
    ([CONFIG, '--topology=v5e-16'], 'names look like'),
    (['--config=configs/emoji.py'], 'configs/emoji.py states none'),
    ([CONFIG, 'v5e:4x4'], 'plan takes flags only'),
  ],
)
def test_wrong_calls_are_one_line(refused, words, message):
  refused(message, 'plan', *words)


def test_a_terminal_gets_one_line_that_is_erased_at_the_end(
  monkeypatch, capsys
):
  monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
  with _Waiting('compiling') as waiting:
    waiting.tick(1.0)
    waiting.tick(62.0)
  said = capsys.readouterr().err
  assert said == '\rcompiling 0:01\rcompiling 1:02\r\033[K'


def test_elsewhere_waiting_is_a_line_a_minute(capsys):
  with _Waiting('compiling') as waiting:
    for seconds in (1.0, 2.0, 62.0, 63.0):
      waiting.tick(seconds)
  assert capsys.readouterr().err == 'compiling ...\n... 1 min\n'


def test_weak_scaling_is_a_row_for_each_topology(clip_jax):
  result = clip_jax(
    'plan', CONFIG, '--config.data.batch_size=512',
    '--scaling=v5p:2x2x4,v5p:4x4x4,2*v5p:4x4x4',
  )  # fmt: skip
  assert result.code == 0
  head, _, *rows = result.out.strip().splitlines()
  cells = [[cell.strip() for cell in row.split('|')[1:-1]] for row in rows]
  assert [row[:3] for row in cells] == [
    ['16', 'v5p:2x2x4', '512'],
    ['64', 'v5p:4x4x4', '2,048'],
    ['128', '2 x v5p:4x4x4', '4,096'],
  ]
  assert len(head.split('|')[1:-1]) == len(cells[0])
  # 500 ms a step, of which the arithmetic takes 250, on however many chips.
  assert cells[1][3:8] == [
    '500.0', '250.0', '1.0', '250.0', 'all-reduce over data 1.0',
  ]  # fmt: skip
  assert [row[-1] for row in cells] == ['100.0%'] * 3


def test_weak_scaling_as_json_and_what_does_not_fit(clip_jax):
  options = ['--config.data.batch_size=196608', '--scaling=v5p:2x2x4,v5p:4x4x4']
  plans = clip_jax('plan', CONFIG, '--json', *options).json
  assert [plan['chips'] for plan in plans] == [16, 64]
  assert [plan['fits'] for plan in plans] == [False, False]
  out = clip_jax('plan', CONFIG, *options).out
  assert out.count('does not fit') == 2


@pytest.mark.parametrize(
  ('options', 'reason'),
  [
    (['--scaling=v5p:2x2x4', TOPOLOGY], '--scaling cannot be combined with'),
    (['--scaling=some*v5p:2x2x4'], "no topology 'some*v5p:2x2x4'"),
    (['--scaling=0*v5p:2x2x4'], "no topology '0*v5p:2x2x4': expected N*SLICE"),
    (
      ['--scaling=2*v5p:2x2x4', '--config.mesh.slices=2'],
      'leave out mesh.slices=2',
    ),
    (
      ['--scaling=v5p:2x2x4', '--config.data.batch_size=100'],
      'data.batch_size=100 is no multiple of the 16 chips',
    ),
  ],
)
def test_a_scaling_that_cannot_be_is_refused(clip_jax, options, reason):
  result = clip_jax('plan', CONFIG, *options)
  assert result.code == 2
  assert reason in result.err
