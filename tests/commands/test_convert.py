"""`clip-jax convert` as it is typed."""

import os

import jax
import numpy as np
import pytest

from clip_jax import load
from tests.golden_models import GOLDENS
from tests.tiny_run import CAPTIONS

HF_FILES = {
  'config.json', 'model.safetensors', 'preprocessor_config.json',
  'tokenizer.json', 'tokenizer_config.json',
}  # fmt: skip
OPEN_CLIP_FILES = {
  'open_clip_config.json', 'open_clip_model.safetensors', 'tokenizer.json',
  'tokenizer_config.json',
}  # fmt: skip


@pytest.mark.parametrize(
  ('target', 'files'), [('hf', HF_FILES), ('open_clip', OPEN_CLIP_FILES)]
)
def test_a_trained_model_and_its_vocabulary(
  clip_jax, workdir, tmp_path, target, files
):
  out = tmp_path / 'out'
  result = clip_jax(
    'convert', f'--model={workdir}', f'--to={target}', f'--out={out}'
  )
  assert result.code == 0, result
  assert set(os.listdir(out)) == files
  sizes = dict(line.split()[::-1] for line in result.out.splitlines())
  assert sizes == {
    f'{out}/{name}': f'{(out / name).stat().st_size:,}' for name in files
  }
  notes = result.err.splitlines()
  assert notes
  assert all(line.startswith('note: ') for line in notes)
  ours, theirs = load(workdir), load(out)
  jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
  np.testing.assert_allclose(
    theirs.encode_text(CAPTIONS), ours.encode_text(CAPTIONS), atol=1e-6
  )


def test_json_says_the_files_and_what_differs(clip_jax, workdir, tmp_path):
  out = tmp_path / 'out'
  result = clip_jax(
    'convert', f'--model={workdir}', '--to=hf', f'--out={out}', '--json'
  )
  assert result.code == 0, result
  assert result.err == ''
  said = result.json
  assert said['differences']
  assert said == {
    'model': str(workdir),
    'to': 'hf',
    'out': str(out),
    'files': {p.name: p.stat().st_size for p in sorted(out.iterdir())},
    'differences': said['differences'],
  }


def test_a_published_model_in_another_layout_and_size(clip_jax, tmp_path):
  archive = GOLDENS / 'archives' / 'open_clip_checkpoint.pt'
  out = tmp_path / 'out'
  result = clip_jax(
    'convert', f'--model={archive}', '--activation=quick_gelu', '--to=hf',
    '--image_size=96', f'--out={out}',
  )  # fmt: skip
  assert result.code == 0, result
  assert 'note: The model came without a tokenizer' in result.err
  converted = load(out)
  expected = load(archive, activation='quick_gelu', image_size=96)
  assert converted.config.image.image_size == 96
  jax.tree.map(np.testing.assert_array_equal, converted.params, expected.params)


def test_a_tokenizer_can_be_given_along(clip_jax, tmp_path):
  out = tmp_path / 'out'
  result = clip_jax(
    'convert', f'--model={GOLDENS / "open_clip_vit_gelu"}', '--tokenizer=clip',
    '--to=hf', f'--out={out}',
  )  # fmt: skip
  assert result.code == 0, result
  assert {'vocab.json', 'merges.txt', 'tokenizer.json'} < set(os.listdir(out))
  assert load(out).tokenizer(['a cat']).max() == 49_407


def test_wrong_calls_are_one_line(refused, workdir, tmp_path):
  model, out = f'--model={workdir}', f'--out={tmp_path / "out"}'
  to = '--to=hf'
  refused('no --model', 'convert', to, out)
  refused('no --to: hf or open_clip', 'convert', model, out)
  refused('no --out', 'convert', model, to)
  refused("no layout 'onnx'", 'convert', model, '--to=onnx', out)
  refused('flags only', 'convert', model, to, out, 'word')
  refused('no model in', 'convert', f'--model={tmp_path}', to, out)
  refused('no folder', 'convert', model, to, f'--out={tmp_path}/no/out')
  refused('for a bare weight', 'convert', model, to, out, '--preset=RN50')
  resnet = f'--model={GOLDENS / "open_clip_resnet"}'
  refused('no ResNet in its CLIP', 'convert', resnet, to, out)
  clipa = f'--model={GOLDENS / "open_clip_vit_gelu" / "clipa"}'
  refused("image.pooling='average'", 'convert', clipa, to, out)
  assert os.listdir(tmp_path) == []
  (tmp_path / 'file').touch()
  refused('not an empty folder', 'convert', model, to, f'--out={tmp_path}')
  refused('not an empty folder', 'convert', model, to, f'--out={tmp_path}/file')
  assert os.listdir(tmp_path) == ['file']


def test_a_full_disk_leaves_nothing(clip_jax, small_disk):
  out = small_disk / 'out'
  result = clip_jax(
    'convert', f'--model={GOLDENS / "open_clip_vit"}', '--to=open_clip',
    f'--out={out}',
  )  # fmt: skip
  assert result.code == 1
  assert result.out == ''
  assert result.err.startswith(f'error: {out}')
  assert result.err.count('\n') == 1
  assert os.listdir(small_disk) == []


def test_a_wrong_call_does_not_read_the_model(
  refused, workdir, tmp_path, monkeypatch
):
  monkeypatch.setattr('clip_jax.commands.model_flags.read_model', None)
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'a').touch()
  call = ['convert', f'--model={workdir}']
  refused('no layout', *call, '--to=keras', f'--out={tmp_path / "new"}')
  refused('not an empty folder', *call, '--to=hf', f'--out={tmp_path}/full')
  refused('there is no folder', *call, '--to=hf', f'--out={tmp_path}/no/new')
