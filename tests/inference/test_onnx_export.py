"""ONNX: what onnxruntime computes of it, and what is refused."""

import os
import sys

import numpy as np
import pytest

from clip_jax.errors import FailureError, UsageError
from clip_jax.inference import onnx_export
from clip_jax.inference.export import export
from clip_jax.inference.programs import flat_weights
from tests.inference.other_towers import TOWERS, random_model
from tests.tiny_run import tiny_model

onnx = pytest.importorskip('onnx')
pytest.importorskip('jax2onnx')
onnxruntime = pytest.importorskip('onnxruntime')
TEXTS = ['red square', 'cat face', 'big blue circle']


def session(path):
  return onnxruntime.InferenceSession(
    os.fspath(path), providers=['CPUExecutionProvider']
  )


@pytest.mark.slow
def test_onnxruntime_computes_the_models_features(tmp_path, capsys):
  model, out = tiny_model(), tmp_path / 'out'
  manifest, differences = export(model, out, onnx=True)
  assert set(differences) == {'encode_image', 'encode_text'}
  assert max(differences.values()) < 1e-5
  assert 'encode_image.onnx' in manifest.files
  assert capsys.readouterr() == ('', '')  # jax2onnx talks
  rng = np.random.default_rng(1)
  image, text = (session(out / f'encode_{x}.onnx') for x in ('image', 'text'))
  (pixels,), (tokens,) = image.get_inputs(), text.get_inputs()
  assert (pixels.name, pixels.type) == ('pixels', 'tensor(uint8)')
  assert (tokens.name, tokens.type) == ('tokens', 'tensor(int32)')
  assert pixels.shape[1:] == [16, 16, 3]
  assert tokens.shape[1:] == [16]
  for count in (1, 3, 17):
    rows = rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    (result,) = image.run(['features'], {'pixels': rows})
    np.testing.assert_allclose(result, model.encode_image(rows), atol=1e-5)
    texts = [f'{TEXTS[i % 3]} {i}' for i in range(count)]
    (result,) = text.run(['features'], {'tokens': model.tokenizer(texts)})
    np.testing.assert_allclose(result, model.encode_text(texts), atol=1e-5)
  proto = onnx.load(out / 'encode_image.onnx')
  assert proto.opset_import[0].version == onnx_export.OPSET
  assert not {'Scan', 'Loop', 'If'} & {
    node.op_type for node in proto.graph.node
  }


@pytest.mark.slow
@pytest.mark.parametrize('name', TOWERS)
def test_other_towers(tmp_path, name):
  model = random_model(name)
  differences = onnx_export.write_onnx(tmp_path, model, flat_weights(model))
  assert max(differences.values()) < 1e-5


@pytest.mark.slow
def test_weights_that_one_file_cannot_hold_lie_beside_it(tmp_path, monkeypatch):
  monkeypatch.setattr(onnx_export, '_MAX_BYTES', 10_000)
  export(tiny_model(), tmp_path / 'out', onnx=True)
  sizes = {f.name: f.stat().st_size for f in (tmp_path / 'out').iterdir()}
  for name in ('encode_image.onnx', 'encode_text.onnx'):
    assert sizes[f'{name}.data'] > 100_000 > sizes[name]


@pytest.mark.slow
def test_features_that_differ_are_an_error(tmp_path, monkeypatch):
  monkeypatch.setattr(onnx_export, 'MAX_DIFFERENCE', -1)
  with pytest.raises(
    FailureError, match=r'encode_image\.onnx computes feature'
  ):
    export(tiny_model(), tmp_path / 'out', onnx=True)
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('name', ['jax2onnx', 'onnx', 'onnxruntime'])
def test_what_is_missing_is_named(tmp_path, monkeypatch, name):
  monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(
    UsageError, match=rf'needs {name}: pip install "\.\[onnx\]"'
  ):
    export(tiny_model(), tmp_path / 'out', onnx=True)


def test_bfloat16_is_refused(tmp_path):
  model = tiny_model(dtype='bfloat16')
  with pytest.raises(UsageError, match='ONNX is written in float32 only'):
    export(model, tmp_path / 'out', onnx=True)
