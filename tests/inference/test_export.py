"""Exporting a model, and loading it back as a model."""

import os
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import load
from clip_jax.errors import FailureError, UsageError
from clip_jax.inference import artifact
from clip_jax.inference.export import export, load_exported
from clip_jax.inference.exported import Exported
from clip_jax.inference.programs import encoders, flat_weights, lower, row_specs
from clip_jax.interop.safetensors_file import open_safetensors
from clip_jax.trees import nested
from tests.inference.other_towers import TOWERS, random_model
from tests.tiny_run import tiny_description, tiny_model, tiny_params

FILES = [
  'README.md', 'description.json', 'encode_image.jaxexport',
  'encode_text.jaxexport', 'manifest.json', 'weights.safetensors',
]  # fmt: skip


def test_the_directory_holds_what_the_manifest_says(tmp_path):
  manifest, differences = export(tiny_model(), tmp_path / 'out')
  assert sorted(os.listdir(tmp_path / 'out')) == FILES
  assert differences == {}
  assert os.listdir(tmp_path) == ['out']  # no temporary folder
  assert artifact.read_manifest(tmp_path / 'out') == manifest
  assert manifest.platforms == ('cpu', 'cuda', 'tpu')
  assert manifest.dtype == 'float32'
  scale = np.exp(tiny_params()['logit_scale'])
  assert manifest.logit_scale == pytest.approx(scale, rel=1e-6)
  assert manifest.logit_bias is None
  assert manifest.programs == {
    'encode_image': {
      'input': {'dtype': 'uint8', 'shape': ['b', 16, 16, 3]},
      'output': {'dtype': 'float32', 'shape': ['b', 16]},
    },
    'encode_text': {
      'input': {'dtype': 'int32', 'shape': ['b', 16]},
      'output': {'dtype': 'float32', 'shape': ['b', 16]},
    },
  }
  modes = {path.stat().st_mode for path in (tmp_path / 'out').iterdir()}
  assert len(modes) == 1  # whoever may read one file may read all


def test_the_same_model_gives_the_same_bytes(tmp_path):
  one, _ = export(tiny_model(), tmp_path / 'one')
  two, _ = export(tiny_model(), tmp_path / 'two')
  assert one.files == two.files


def test_what_was_exported_loads_as_the_model(tmp_path):
  export(tiny_model(), tmp_path / 'out')
  variables, description = load_exported(tmp_path / 'out')
  assert description == tiny_description()
  jax.tree.map(
    np.testing.assert_array_equal, variables, {'params': tiny_params()}
  )


@pytest.mark.slow
@pytest.mark.parametrize('name', TOWERS)
def test_other_towers(tmp_path, name):
  model = random_model(name)
  manifest, _ = export(model, tmp_path / 'out')
  bias = model.config.initial_logit_bias
  assert (manifest.logit_bias is None) == (bias is None)
  size = model.preprocessing.image_size
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (3, size, size, 3), dtype=np.uint8)
  texts = ['red square', 'cat face']
  exported = Exported(tmp_path / 'out')
  again = load(tmp_path / 'out')
  kinds = jax.tree.map(lambda leaf: leaf.dtype, model.variables)
  assert jax.tree.map(lambda leaf: leaf.dtype, again.variables) == kinds
  for result in (exported, again):
    np.testing.assert_allclose(
      result.encode_image(pixels), model.encode_image(pixels), atol=1e-5
    )
    np.testing.assert_allclose(
      result.encode_text(texts), model.encode_text(texts), atol=1e-5
    )
  if bias is None:
    with pytest.raises(UsageError, match='a model with a logit bias'):
      exported.classify(pixels, texts, independent=True)
  else:
    np.testing.assert_allclose(
      exported.classify(pixels, texts, independent=True),
      model.classify(pixels, texts, independent=True),
      rtol=1e-4,
    )


def test_bfloat16_halves_the_matrices_and_not_the_accuracy(tmp_path):
  model = tiny_model(dtype='bfloat16')
  export(model, tmp_path / 'half')
  with open_safetensors(tmp_path / 'half' / artifact.WEIGHTS) as tensors:
    kinds = {name: str(info.dtype) for name, info in tensors.infos.items()}
  for name, kind in kinds.items():
    matrix = name.endswith(('/kernel', '/embedding'))
    assert kind == ('bfloat16' if matrix else 'float32'), name
  exported = Exported(tmp_path / 'half')
  assert exported.manifest.dtype == 'bfloat16'
  texts = ['red square', 'cat face']
  exact = tiny_model().encode_text(texts)
  error = np.abs(exported.encode_text(texts) - exact).max()
  # The model keeps its blocks apart on a CPU, and so rounds elsewhere.
  assert 0 < error < 2 * np.abs(model.encode_text(texts) - exact).max()


@pytest.mark.parametrize('name', artifact.PROGRAMS)
def test_programs_are_of_full_precision_and_self_contained(name):
  model = tiny_model()
  weights, rows = flat_weights(model), row_specs(model)
  program = lower(encoders(model)[name], weights, rows[name], ['cuda', 'tpu'])
  text = program.mlir_module()
  products = re.findall(r'stablehlo\.(?:dot_general|convolution).*', text)
  assert len(products) >= 6
  for product in products:
    assert 'HIGHEST' in product, product
  assert set(re.findall(r'custom_call @(\w+)', text)) == {'shape_assertion'}
  assert 'clip_jax/' not in text  # no path of the machine that wrote it
  (used, _), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
  tower = name.removeprefix('encode_')
  assert set(used) == {key for key in weights if f'/{tower}' in key}


def test_a_program_that_calls_out_is_not_exported(tmp_path, monkeypatch):
  def encode(weights, rows):
    features = rows.mean((1, 2, 3))[:, None]
    leaf = weights['params/image/class_embedding'][:1]
    return features + jnp.linalg.cholesky(jnp.diag(leaf * leaf + 1))  # LAPACK

  monkeypatch.setattr(
    'clip_jax.inference.export.encoders', lambda _: {'encode_image': encode}
  )
  with pytest.raises(
    FailureError, match=r'image\.jaxexport makes custom calls'
  ):
    export(tiny_model(), tmp_path / 'out')
  assert os.listdir(tmp_path) == []


def test_flat_weights_nest_again():
  flat = flat_weights(tiny_model())
  assert 'params/image/transformer/blocks/attention/qkv/kernel' in flat
  again = nested(flat)
  jax.tree.map(np.testing.assert_array_equal, again, {'params': tiny_params()})


def test_only_an_earlier_export_is_ever_replaced(tmp_path):
  model, out = tiny_model(), tmp_path / 'out'
  out.mkdir()
  export(model, out, platforms=['cpu'])  # an empty folder will do
  with pytest.raises(UsageError, match='holds an earlier export'):
    export(model, out)
  assert artifact.read_manifest(out).platforms == ('cpu',)
  export(model, out, platforms=['tpu'], overwrite=True)
  assert artifact.read_manifest(out).platforms == ('tpu',)
  assert os.listdir(tmp_path) == ['out']
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'notes').touch()
  with pytest.raises(UsageError, match='mine holds other files'):
    export(model, tmp_path / 'mine', overwrite=True)
  with pytest.raises(UsageError, match='notes is not a folder'):
    export(model, tmp_path / 'mine' / 'notes', overwrite=True)
  with pytest.raises(UsageError, match='there is no folder'):
    export(model, tmp_path / 'nowhere' / 'out')
  for platforms in (['gpu'], []):
    with pytest.raises(UsageError, match='give some of cpu, cuda, tpu'):
      export(model, tmp_path / 'new', platforms=platforms)
  assert sorted(os.listdir(tmp_path)) == ['mine', 'out']


def test_a_full_disk_leaves_the_earlier_export(small_disk):
  model, out = tiny_model(), small_disk / 'out'
  export(model, out)
  before = artifact.read_manifest(out)
  for free in (10_000, 150_000, 400_000):  # programs, weights, description
    (small_disk / 'ballast').unlink(missing_ok=True)
    room = os.statvfs(small_disk)
    size = room.f_bavail * room.f_bsize - free
    if size > 0:
      (small_disk / 'ballast').write_bytes(bytes(size))
    with pytest.raises(FailureError, match=rf'^{out}.*(?i:no space left)'):
      export(model, out, overwrite=True)
    assert artifact.read_manifest(out) == before
    artifact.verify(out, before)
    assert set(os.listdir(small_disk)) <= {'out', 'ballast'}
