"""`clip-jax info` as it is typed, and what help costs."""

import subprocess
import sys

import pytest

from clip_jax.models.presets import PRESETS
from tests.tiny_run import tiny_description


def test_a_presets_published_numbers(clip_jax):
  result = clip_jax('info', '--preset=ViT-B/32')
  assert '151,277,313 parameters' in result.out
  assert '87,849,216' in result.out
  assert '63,428,096' in result.out
  assert '58.1 %' in result.out


def test_json_has_the_agreed_keys(clip_jax):
  facts = clip_jax('info', '--preset=ViT-B/32', '--json').json
  assert facts['parameters'] == 151_277_313
  assert facts['image_parameters'] == 87_849_216
  assert facts['text_parameters'] == 63_428_096
  assert facts['gflops_per_image'] == pytest.approx(8.82, abs=0.01)
  assert facts['gflops_per_text'] == pytest.approx(5.96, abs=0.01)


def test_all_is_a_row_for_each_preset(clip_jax):
  rows = clip_jax('info', '--all').out.splitlines()
  assert [row.split()[0] for row in rows[1:]] == list(PRESETS)
  assert len({len(row) for row in rows}) == 1
  names = [facts['name'] for facts in clip_jax('info', '--all', '--json').json]
  assert names == list(PRESETS)


def test_a_model(clip_jax, workdir):
  facts = clip_jax('info', f'--model={workdir}', '--json').json
  assert facts['step'] == 7
  assert facts['config'] == tiny_description().model.to_dict()
  assert facts['tokenizer'] == 'sentencepiece'
  assert facts['preprocessing']['image_size'] == 16
  shown = clip_jax('info', f'--model={workdir}').out
  assert 'trained to step 7' in shown
  assert f'{facts["parameters"]:,} parameters' in shown


def test_wrong_calls_are_one_line(refused, workdir, tmp_path):
  refused('needs one of', 'info')
  refused('only one', 'info', '--preset=ViT-B/32', f'--model={workdir}')
  refused("did you mean 'ViT-L/14'", 'info', '--preset=ViT-Z/14')
  refused('no model in', 'info', f'--model={tmp_path}')
  refused('flags only', 'info', 'ViT-B/32')


@pytest.mark.parametrize('verb', ['classify', 'embed', 'eval', 'info'])
def test_help_has_examples_and_imports_nothing_heavy(verb):
  code = (
    'import sys; from clip_jax.__main__ import main; '
    f'main(["{verb}", "--help"]); '
    'heavy = {"jax", "numpy", "flax", "tensorflow", "PIL"}; '
    'sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)'
  )
  result = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=False
  )
  assert result.returncode == 0, result.stderr
  assert 'usage:' in result.stdout
  assert result.stdout.count(f'clip-jax {verb}') >= 4
