import json

import numpy as np
import pytest

from clip_jax.errors import FailureError, UsageError
from clip_jax.interop.safetensors_file import write_safetensors
from clip_jax.interop.weight_files import open_tensors
from tests.interop.torch_archives import write_state_dict

ONE, TWO = (
  'model-00001-of-00002.safetensors',
  'model-00002-of-00002.safetensors',
)
WEIGHT_MAP = {'b': TWO, 'a': ONE, 'c': ONE}


@pytest.fixture
def indexed(tmp_path):
  """Opens two shards through an index with this content."""
  folder = tmp_path / 'model'
  folder.mkdir()
  values = {name: np.full(3, ord(name)) for name in WEIGHT_MAP}
  write_safetensors(
    folder / ONE, {n: values[n] for n in 'ac'}, {'format': 'pt'}
  )
  write_safetensors(folder / TWO, {'b': values['b']}, {'format': 'pt'})

  def indexed(content):
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / 'model.safetensors.index.json').write_text(text)
    return open_tensors(folder)

  return indexed


def test_shards_read_as_one_file(indexed):
  tensors = indexed({'metadata': {'total_size': 72}, 'weight_map': WEIGHT_MAP})
  assert tensors.format == 'safetensors'
  assert list(tensors.infos) == list(WEIGHT_MAP)
  assert tensors.metadata == {'format': 'pt', 'total_size': 72}
  for name in WEIGHT_MAP:
    assert tensors.read(name).tolist() == [ord(name)] * 3


@pytest.mark.parametrize(
  'shard',
  [
    '../outside.safetensors',
    '/etc/passwd',
    'below/model.safetensors',
    '..\\outside.safetensors',
    '..',
    '.',
    '',
    'a\0b',
  ],
)
def test_a_shard_outside_the_directory_is_refused(shard, indexed, tmp_path):
  write_safetensors(tmp_path / 'outside.safetensors', {'a': np.ones(1)}, {})
  with pytest.raises(FailureError, match='is not a plain file name'):
    indexed({'weight_map': WEIGHT_MAP | {'a': shard}})


@pytest.mark.parametrize(
  ('content', 'error', 'message'),
  [
    (
      {'weight_map': WEIGHT_MAP | {'b': ONE}},
      FailureError,
      f"'b' is not in {ONE}",
    ),
    (
      {'weight_map': WEIGHT_MAP | {'b': 'model-3.safetensors'}},
      FailureError,
      'its shard model-3.safetensors is missing',
    ),
    ({'weight_map': {'a': 1}}, FailureError, 'has no weight_map'),
    ({'weight_map': []}, FailureError, 'has no weight_map'),
    ({'model_type': 'clip'}, FailureError, 'has no weight_map'),
    ({'weight_map': {}}, UsageError, 'holds no tensor'),
    ('{"weight_map": {"a"', FailureError, 'its text is not JSON'),
    ('{"weight_map": {"a": "x", "a": "y"}}', FailureError, 'has a key twice'),
  ],
)
def test_an_index_that_disagrees_is_refused(content, error, message, indexed):
  with pytest.raises(error, match=message):
    indexed(content)


def test_a_damaged_shard_is_named(indexed, tmp_path):
  shard = tmp_path / 'model' / TWO
  shard.write_bytes(shard.read_bytes()[:-1])
  with pytest.raises(FailureError, match=f'{TWO} is damaged'):
    indexed({'weight_map': WEIGHT_MAP})


def torch_shards(folder, suffix='bin'):
  """Two files as `torch.save` writes them, and their index."""
  names = [f'pytorch_model-0000{i}-of-00002.{suffix}' for i in (1, 2)]
  values = {name: np.full(3, ord(name), np.float16) for name in WEIGHT_MAP}
  write_state_dict(folder / names[0], {n: values[n] for n in 'ac'})
  write_state_dict(folder / names[1], {'b': values['b']})
  index = folder / 'pytorch_model.bin.index.json'
  weight_map = {'b': names[1], 'a': names[0], 'c': names[0]}
  index.write_text(json.dumps({'weight_map': weight_map}))
  return index, names


@pytest.mark.parametrize('suffix', ['bin', 'safetensors'])
def test_shards_of_torch_are_told_by_their_content(suffix, tmp_path):
  index, _ = torch_shards(tmp_path, suffix)
  with open_tensors(index) as tensors:
    assert tensors.format == 'torch'
    assert list(tensors.infos) == list(WEIGHT_MAP)
    for name in WEIGHT_MAP:
      assert tensors.read(name).tolist() == [ord(name)] * 3
      tensors.release()


def test_a_damaged_shard_of_torch_is_named(tmp_path):
  index, names = torch_shards(tmp_path)
  shard = tmp_path / names[1]
  shard.write_bytes(shard.read_bytes()[:-30])
  with pytest.raises(FailureError, match=f'{names[1]} is damaged'):
    open_tensors(index)


def test_a_shard_that_is_no_weight_file_is_named(tmp_path):
  index, names = torch_shards(tmp_path)
  (tmp_path / names[0]).write_text('version https://git-lfs.github.com/spec')
  with pytest.raises(UsageError, match=rf'{names[0]} .*a git-lfs pointer'):
    open_tensors(index)


def test_an_index_that_names_itself_is_refused(tmp_path):
  index, _ = torch_shards(tmp_path)
  index.write_text(json.dumps({'weight_map': {'a': index.name}}))
  with pytest.raises(UsageError, match='it is an index, and an index named it'):
    open_tensors(index)
