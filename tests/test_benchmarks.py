"""What `clip-jax bench` prints is measured and has the agreed names."""

import json

import pytest

from clip_jax import benchmarks
from clip_jax.__main__ import main
from clip_jax.models import presets
from tests.tiny import TINY, write_pairs

TINY_FIELDS = {
  **TINY.to_dict(),
  'text': TINY.to_dict()['text']
  | {'vocab_size': 49_408, 'end_token': 49_407, 'context_length': 16},
}


@pytest.fixture
def tiny_preset(monkeypatch):
  monkeypatch.setitem(presets.PRESETS, 'tiny', TINY_FIELDS)
  return 'tiny'


@pytest.fixture
def pairs(tmp_path):
  return write_pairs(tmp_path / 'pairs')


def bench(capsys, *argv):
  assert main(['bench', *argv, '--json', '--cpu_devices=8']) == 0
  return json.loads(capsys.readouterr().out)


def test_train(capsys, tiny_preset, pairs):
  figures = bench(
    capsys, 'train', f'--preset={tiny_preset}', f'--data={pairs}',
    '--batch=16', '--steps=3',
  )  # fmt: skip
  assert figures['examples_per_second'] > 0
  assert 0 <= figures['input_wait_fraction'] <= 1
  assert (figures['batch'], figures['devices']) == (16, 8)


def test_encode(capsys, tiny_preset):
  figures = bench(
    capsys, 'encode', f'--preset={tiny_preset}', '--batch=8', '--steps=2'
  )
  assert figures['images_per_second'] > 0
  assert figures['texts_per_second'] > 0


def test_loss_has_a_row_for_each_form(capsys):
  rows = bench(capsys, 'loss', '--batch=256', '--embed_dim=32', '--steps=2')
  by_form = {row['form']: row for row in rows}
  assert set(by_form) == {'dense', 'all_gather'}
  assert all(row['seconds'] > 0 for row in rows)
  assert all(row['temp_bytes'] > 0 for row in rows)


def test_input(capsys, pairs):
  figures = bench(
    capsys, 'input', f'--data={pairs}', '--image_size=16', '--steps=2'
  )
  assert figures['examples_per_second'] > 0


def test_tokenizer(capsys, pairs):
  figures = bench(capsys, 'tokenizer', f'--data={pairs}', '--steps=2')
  assert figures['captions'] == 24
  assert figures['examples_per_second'] > 0


def test_tokenizer_on_captions_of_its_own(capsys, monkeypatch):
  monkeypatch.setattr(benchmarks, '_CAPTIONS', 50)
  figures = bench(capsys, 'tokenizer', '--steps=2')
  assert (figures['captions'], figures['data']) == (50, 'plain captions')
  assert figures['first_examples_per_second'] > 0


def test_a_batch_that_does_not_split_is_refused(capsys):
  assert main(['bench', 'loss', '--batch=9', '--cpu_devices=8']) == 2
  assert 'does not split over 8 devices' in capsys.readouterr().err


def test_the_median_leaves_the_first_calls_out():
  calls = []
  benchmarks._median_seconds(lambda: calls.append(1), 3)
  assert len(calls) == 5
