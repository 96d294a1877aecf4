"""An exported directory: run without model code, and damaged in every way."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import clip_jax
from clip_jax.errors import FailureError, UsageError
from clip_jax.inference import artifact
from clip_jax.inference.export import export, load_exported
from clip_jax.inference.exported import Exported, foreign_calls
from clip_jax.interop.safetensors_file import (
  open_safetensors,
  write_safetensors,
)
from tests.tiny_run import tiny_model

TEXTS = ['red square', 'cat face', 'big blue circle']
# What must not be imported to run an exported model.
MODEL_CODE = ('flax', 'optax', 'orbax', 'tensorflow', 'grain', 'torch')
OURS = ('clip_jax.models', 'clip_jax.checkpoints', 'clip_jax.inference.model')


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  out = tmp_path_factory.mktemp('exported') / 'model'
  export(tiny_model(), out)
  return out


@pytest.fixture
def copy(directory, tmp_path):
  return shutil.copytree(directory, tmp_path / 'copy')


@pytest.fixture(scope='module')
def pixels():
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (17, 16, 16, 3), dtype=np.uint8)


def run_without(blocked, code, folder):
  """Runs code in a process that cannot import some modules."""
  start = f'import sys\nfor name in {blocked!r}: sys.modules[name] = None\n'
  root = Path(clip_jax.__file__).parents[1]  # as it is, not as installed
  return subprocess.run(
    [sys.executable, '-c', start + code], cwd=folder, check=True, text=True,
    stdout=subprocess.PIPE, env=os.environ | {'PYTHONPATH': str(root)},
  ).stdout  # fmt: skip


@pytest.mark.slow
def test_it_runs_where_the_model_code_cannot_be_imported(
  directory, pixels, tmp_path
):
  np.save(tmp_path / 'pixels.npy', pixels)
  run_without(
    MODEL_CODE + OURS,
    f"""
import numpy as np
from clip_jax.inference.exported import Exported
model = Exported({str(directory)!r})
pixels = np.load('pixels.npy')
np.savez('out.npz', images=model.encode_image(pixels),
  texts=model.encode_text({TEXTS!r}),
  probabilities=model.classify(list(pixels[:2]), ['red', 'cat'], ['big {{}}']))
""",
    tmp_path,
  )
  out, model = np.load(tmp_path / 'out.npz'), tiny_model()
  for result, expected in (
    (out['images'], model.encode_image(pixels)),
    (out['texts'], model.encode_text(TEXTS)),
    (out['probabilities'],
     model.classify(list(pixels[:2]), ['red', 'cat'], ['big {}'])),
  ):  # fmt: skip
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_jax_alone_runs_it_as_its_readme_says(directory, pixels):
  readme = (directory / artifact.README).read_text()
  code = re.findall(r'```python\n(.*?)```', readme, re.DOTALL)[0]
  shown = run_without(
    (*MODEL_CODE, 'clip_jax'),
    code + 'print(images.shape, texts.shape, probabilities.sum(1))',
    directory,
  )
  assert shown.strip() == '(2, 16) (3, 16) [1. 1.]'


@pytest.mark.parametrize('count', [1, 3, 17])
def test_a_program_takes_any_number_of_rows(directory, pixels, count):
  file = directory / artifact.program_file('encode_image')
  program = jax.export.deserialize(bytearray(file.read_bytes()))
  from safetensors.numpy import load_file

  weights = load_file(directory / artifact.WEIGHTS)
  (used, _), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
  assert all(name.startswith('params/image') for name in used)
  result = program.call({name: weights[name] for name in used}, pixels[:count])
  assert result.dtype == jnp.float32
  expected = tiny_model().encode_image(pixels[:count])
  np.testing.assert_allclose(result, expected, atol=1e-5)


def test_pixels_and_tokens_go_in_as_they_are(directory, pixels):
  model = Exported(directory, batch_size=4)
  np.testing.assert_allclose(
    model.encode_pixels(pixels), model.encode_image(pixels), atol=1e-6
  )
  np.testing.assert_allclose(
    model.encode_tokens(model.tokenizer(TEXTS)),
    model.encode_text(TEXTS),
    atol=1e-6,
  )
  assert model.encode_text([]).shape == (0, 16)
  with pytest.raises(UsageError, match=r'uint8 \[8, 8, 3\]: the model reads'):
    model.encode_pixels(pixels[:, :8, :8])
  with pytest.raises(UsageError, match=r'the model reads int32 \[16\]'):
    model.encode_tokens(np.zeros((2, 5), np.int32))


def test_a_model_without_a_tokenizer_reads_tokens(copy):
  rewrite(copy, artifact.DESCRIPTION, tokenizer=None)
  model = Exported(copy)
  assert model.encode_tokens(np.zeros((2, 16), np.int32)).shape == (2, 16)
  with pytest.raises(UsageError, match='exported without a tokenizer'):
    model.encode_text(TEXTS)


def test_every_file_is_compared_with_the_manifest(directory, tmp_path):
  for name in artifact.read_manifest(directory).files:
    for damage, message in (
      (lambda data: data[: len(data) // 2], f'{name} is damaged: it has'),
      (lambda data: data[:-1] + bytes([data[-1] ^ 1]), 'its sha256 is not'),
      (None, f'{name} is damaged: it is missing'),
    ):
      copy = shutil.copytree(directory, tmp_path / 'copy')
      if damage is None:
        (copy / name).unlink()
      else:
        (copy / name).write_bytes(damage((copy / name).read_bytes()))
      with pytest.raises(FailureError, match=message):
        Exported(copy)
      shutil.rmtree(copy)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'format': 'other'}, 'not of `clip-jax export`'),
    ({'format_version': 9}, 'format version 9, and this clip_jax reads 1'),
    ({'files': {}}, "garbles 'description.json'"),
    ({'files': {'../x': {'bytes': 1, 'sha256': ''}}}, "file name '../x'"),
    ({'files': {'/x': {'bytes': 1, 'sha256': ''}}}, "file name '/x'"),
    ({'files': 3}, 'lacks or garbles'),
    ({'platforms': None}, 'lacks or garbles'),
    ({'logit_scale': 'large'}, 'lacks or garbles'),
    ({'surprise': 1}, 'surprise'),
    ({'logit_scale': float('nan')}, 'its logit_scale is nan'),
    ({'files': {'x': 7}}, 'lacks or garbles'),
    ({'dtype': [1]}, "'dtype' is [1], and should be of type str"),
    ({'platforms': ['tpu']}, 'exported for tpu, and jax runs on cpu'),
    ({'calling_convention_version': 99}, 'with calling convention 99'),
  ],
)  # fmt: skip
def test_a_lying_manifest_is_refused(copy, fields, message):
  file = copy / artifact.MANIFEST
  file.write_text(json.dumps(json.loads(file.read_text()) | fields))
  with pytest.raises((UsageError, FailureError)) as caught:
    Exported(copy)
  assert message in str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('content', ['', '[]', '{', '[' * 100_000, '\xff'])
def test_a_manifest_that_is_no_object_is_refused(copy, content):
  (copy / artifact.MANIFEST).write_text(content, 'latin1')
  with pytest.raises(FailureError, match=r'manifest\.json is damaged'):
    Exported(copy)


def test_what_is_no_export_is_refused(tmp_path):
  for path in (tmp_path, tmp_path / 'nowhere', tmp_path / 'file'):
    (tmp_path / 'file').touch()
    with pytest.raises(UsageError, match='not a directory that `clip-jax'):
      Exported(path)


def test_programs_of_another_kind_are_refused(copy, pixels):
  """Even where the manifest has been made to fit them."""
  name = artifact.program_file('encode_image')
  whole = (copy / name).read_bytes()
  weights = {'params/image/class_embedding': jnp.zeros(32)}
  (b,) = jax.export.symbolic_shape('b')
  rows = jax.ShapeDtypeStruct((b, 16, 16, 3), jnp.uint8)

  def program(function, rows, weights=weights):
    exported = jax.export.export(jax.jit(function), platforms=['cpu'])
    return bytes(exported(weights, rows).serialize())

  def features(weights, rows):
    return jnp.zeros((rows.shape[0], 16)) + rows.mean((1, 2, 3))[:, None]

  def lapack(weights, rows):
    return features(weights, rows) + jnp.linalg.cholesky(jnp.eye(16))[:1]

  cases = [
    (b'', 'not a program of jax'),
    (whole[: len(whole) // 3], 'not a program of jax'),
    (np.random.default_rng(0).bytes(4096), 'not a program of jax'),
    (program(lambda w, x: x[0], rows), 'a program of another kind'),
    (program(features, jax.ShapeDtypeStruct((b, 8, 8, 3), jnp.uint8)),
     'description.json says otherwise'),
    (program(lapack, rows), "makes custom calls: 'lapack"),
    (program(features, rows, {'params/nowhere': jnp.zeros(3)}),
     "'params/nowhere' is not float32"),
    (program(features, rows, {'params/image/class_embedding': jnp.zeros(3)}),
     "'params/image/class_embedding' is not float32"),
  ]  # fmt: skip
  for content, message in cases:
    (copy / name).write_bytes(content)
    mend_manifest(copy)
    with pytest.raises(FailureError, match=re.escape(message)):
      Exported(copy).encode_image(pixels)


def rewrite(directory, name, **fields):
  file = directory / name
  file.write_text(json.dumps(json.loads(file.read_text()) | fields))
  mend_manifest(directory)


def mend_manifest(directory):
  """Makes the manifest fit files that have been changed."""
  file = directory / artifact.MANIFEST
  fields = json.loads(file.read_text())
  for name in fields['files']:
    fields['files'][name] = {
      'bytes': (directory / name).stat().st_size,
      'sha256': artifact.file_sha256(directory / name),
    }
  file.write_text(json.dumps(fields))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda d: d['model']['text'].update(context_length=9), 'not those of its'),
    (lambda d: d['model']['image'].update(depth=9), 'not those of its'),
    (lambda d: d['model']['text'].update(context_length=10**9), 'at most'),
    (lambda d: d['preprocessing'].update(mean=[0.5]), 'three numbers'),
    (lambda d: d.update(model=3), "has no 'model'"),
    (lambda d: d.update(tokenizer=[1]), "has no 'tokenizer'"),
  ],
)
def test_a_description_of_other_arrays_is_damage(copy, change, message):
  """The manifest is made to agree, so that only the description is wrong."""
  file = copy / artifact.DESCRIPTION
  fields = json.loads(file.read_text())
  change(fields)
  file.write_text(json.dumps(fields))
  manifest = copy / artifact.MANIFEST
  listed = json.loads(manifest.read_text())
  listed['files'][file.name] = {
    'bytes': file.stat().st_size,
    'sha256': artifact.file_sha256(file),
  }
  manifest.write_text(json.dumps(listed))
  with pytest.raises(FailureError, match=message) as error:
    load_exported(copy)
  assert str(file) in str(error.value)


def test_a_pipe_in_the_place_of_a_manifest_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / artifact.MANIFEST)
  assert not artifact.is_artifact(tmp_path)


def test_a_damaged_program_neither_ends_the_process_nor_speaks(copy, capfd):
  """The parser of StableHLO can crash, and prints what it reads."""
  random = np.random.default_rng(0)
  file = copy / artifact.program_file('encode_text')
  data = file.read_bytes()
  start = data.index(b'StableHLO')
  refused = 0
  for _ in range(12):
    damaged = bytearray(data)
    for place in random.integers(start, len(data), 3).tolist():
      damaged[place] ^= int(random.integers(1, 256))
    file.write_bytes(damaged)
    mend_manifest(copy)
    try:
      _ = Exported(copy)._text_program
    except FailureError as error:
      refused += 1
      assert str(file) in str(error)
  assert refused
  assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize(
  'line',
  [
    'stablehlo.custom_call @shape_assertion_2(%0)',
    'stablehlo.custom_call @"shape_assertion x"(%0)',
    'stablehlo.custom_call @" shape_assertion"(%0)',
    'stablehlo.custom_call @"shape_assertion\\"(%0)" (%0)',
    '"stablehlo.custom_call"(%0) <{call_target_name = "shape assertion"}>',
    '"stablehlo.custom_call"(%0) {a = 1 : i32, call_target_name = "x"}',
    'stablehlo.custom_call @shape_assertion(%0)\nstablehlo.custom_call %1',
    'mhlo.custom_call @evil(%0)',
  ],
)
def test_the_whole_name_of_a_call_is_compared(line):
  assert foreign_calls(f'module {{ {line} }}')


@pytest.mark.parametrize(
  'line',
  [
    'stablehlo.custom_call @shape_assertion(%0) {api_version = 2 : i32}',
    'stablehlo.custom_call @"shape_assertion"(%0)',
    '"stablehlo.custom_call"(%0) <{call_target_name = "shape_assertion"}>',
    'stablehlo.add %0, %1',
  ],
)
def test_what_jax_itself_calls_is_allowed(line):
  assert not foreign_calls(line)


def test_features_that_are_no_numbers_are_said(directory, copy, pixels):
  with open_safetensors(copy / artifact.WEIGHTS) as tensors:
    arrays = {name: np.array(tensors.read(name)) for name in tensors.infos}
  for array in arrays.values():
    if array.dtype == np.float32:
      array.fill(np.nan)
  write_safetensors(copy / artifact.WEIGHTS, arrays, {'format': 'flax'})
  path = copy / artifact.MANIFEST
  manifest = json.loads(path.read_text())
  manifest['files'][artifact.WEIGHTS] = {
    'bytes': (copy / artifact.WEIGHTS).stat().st_size,
    'sha256': artifact.file_sha256(copy / artifact.WEIGHTS),
  }
  path.write_text(json.dumps(manifest))
  with pytest.raises(FailureError, match='not finite numbers'):
    Exported(copy).encode_pixels(pixels[:1])
