"""`clip-jax export` as it is typed."""

import os
import sys

import numpy as np
import pytest

from clip_jax import load
from clip_jax.inference.exported import Exported

FILES = [
  'README.md', 'description.json', 'encode_image.jaxexport',
  'encode_text.jaxexport', 'manifest.json', 'weights.safetensors',
]  # fmt: skip


def test_what_is_exported_runs(clip_jax, workdir, photos, tmp_path):
  out = tmp_path / 'out'
  result = clip_jax('export', f'--model={workdir}', f'--out={out}')
  assert result.code == 0, result
  *files, last = result.out.splitlines()
  assert [line.split()[1] for line in files] == FILES
  assert last == f'cpu, cuda, tpu, float32 -> {out}'
  images = [photos / 'cat_face' / '0.png', photos / 'red_square' / '1.png']
  np.testing.assert_allclose(
    Exported(out).encode_image(images),
    load(workdir).encode_image(images),
    atol=1e-5,
  )


def test_json_and_the_flags(clip_jax, workdir, tmp_path):
  out = tmp_path / 'out'
  call = ('export', f'--model={workdir}', f'--out={out}', '--dtype=bfloat16',
          '--platforms=tpu,cpu', '--json')  # fmt: skip
  result = clip_jax(*call)
  assert result.code == 0, result
  sizes = {path.name: path.stat().st_size for path in out.iterdir()}
  assert result.json == {
    'out': str(out),
    'files': [{'name': name, 'bytes': sizes[name]} for name in FILES],
    'platforms': ['tpu', 'cpu'],
    'dtype': 'bfloat16',
  }
  assert clip_jax(*call).code == 2
  assert clip_jax(*call, '--overwrite').code == 0
  assert os.listdir(tmp_path) == ['out']


def test_the_model_is_read_as_the_flags_say(
  clip_jax, refused, workdir, photos, tmp_path
):
  out = tmp_path / 'out'
  call = ('export', f'--model={workdir}', f'--out={out}', '--platforms=cpu')
  refused('no tokenizer', *call, '--tokenizer=words')
  assert clip_jax(*call, '--image_size=32', '--as_displayed').code == 0
  model = load(workdir, image_size=32, as_displayed=True)
  exported = Exported(out)
  assert exported.preprocessing == model.preprocessing
  images = [photos / 'cat_face' / '0.png', photos / 'red_square' / '1.png']
  np.testing.assert_allclose(
    exported.encode_image(images), model.encode_image(images), atol=1e-5
  )


@pytest.mark.slow
def test_onnx(clip_jax, workdir, tmp_path):
  for library in ('jax2onnx', 'onnx', 'onnxruntime'):
    pytest.importorskip(library)
  out = tmp_path / 'out'
  call = ('export', f'--model={workdir}', f'--out={out}', '--onnx')
  result = clip_jax(*call, '--json')
  assert result.code == 0, result
  differences = result.json['onnx']['max_difference']
  assert set(differences) == {'encode_image', 'encode_text'}
  assert all(0 <= value < 1e-5 for value in differences.values())
  assert {'encode_image.onnx', 'encode_text.onnx'} < set(os.listdir(out))
  result = clip_jax(*call, '--overwrite')
  assert 'encode_text.onnx differs from the model by at most' in result.out


def test_wrong_calls_are_one_line(refused, workdir, tmp_path):
  model, out = f'--model={workdir}', f'--out={tmp_path / "out"}'
  refused('no --model', 'export', out)
  refused('no --out', 'export', model)
  refused('flags only', 'export', model, out, 'word')
  refused('no model in', 'export', f'--model={tmp_path}', out)
  refused('no model in', 'export', '--model=nowhere', out)
  refused("dtype='int8': use", 'export', model, out, '--dtype=int8')
  refused("no platform 'rocm'", 'export', model, out, '--platforms=cpu,rocm')
  refused("no platform ''", 'export', model, out, '--platforms=')
  refused('float32 only', 'export', model, out, '--onnx', '--dtype=bfloat16')
  refused('no folder', 'export', model, f'--out={tmp_path}/no/out')
  (tmp_path / 'file').touch()
  refused('is not a folder', 'export', model, f'--out={tmp_path}/file')
  refused('holds other files', 'export', model, f'--out={tmp_path}')
  assert os.listdir(tmp_path) == ['file']


def test_a_wrong_call_does_not_load_the_model(
  refused, workdir, tmp_path, monkeypatch
):
  monkeypatch.setattr('clip_jax.commands.model_flags.load_model', None)
  call = ['export', f'--model={workdir}', f'--out={tmp_path / "out"}']
  refused("no platform 'rocm'", *call, '--platforms=cpu,rocm')
  refused("dtype='int8': use", *call, '--dtype=int8')
  refused('no folder', *call[:2], f'--out={tmp_path}/no/out')


def test_without_the_extra_it_is_named(refused, workdir, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'jax2onnx', None)
  refused(
    'pip install ".[onnx]"',
    'export', f'--model={workdir}', f'--out={tmp_path / "out"}', '--onnx',
  )  # fmt: skip


def test_a_folder_that_cannot_be_written(clip_jax, workdir):
  result = clip_jax('export', f'--model={workdir}', '--out=/proc/out')
  assert result.code == 1
  assert result.err.startswith('error: /proc/out could not be written')
