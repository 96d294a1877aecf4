"""Published models from what their authors shipped."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from clip_jax.data.preprocessing import Preprocessing
from clip_jax.errors import FailureError, UsageError
from clip_jax.inference.loading import load
from clip_jax.interop import layouts, openai
from clip_jax.interop.converting import convert
from clip_jax.interop.published_files import Hints
from clip_jax.interop.published_model import read_published
from clip_jax.models import presets
from tests.golden_models import GOLDENS, load_golden
from tests.interop.torch_archives import write_state_dict

ARCHIVES = GOLDENS / 'archives'


def same_arrays(ours, theirs):
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize('name', ['openai_state_dict', 'openai_torchscript'])
def test_openais_archives_say_all_that_is_needed(name):
  foreign = read_published(ARCHIVES / f'{name}.pt')
  golden = load_golden('open_clip_vit')
  assert foreign.description.model == golden.config
  assert foreign.guesses == ()
  halves = {'kernel', 'embedding'}

  def expected(path, leaf):
    half = path[-1].key in halves or 'embedding' in path[-1].key
    matrix = half and path[-1].key != 'class_embedding'
    return leaf.astype(np.float16) if matrix else leaf

  rounded = jax.tree_util.tree_map_with_path(expected, golden.variables)
  same_arrays(foreign.variables, rounded)


def test_a_bare_checkpoint_of_open_clip_is_told_by_its_shapes():
  foreign = read_published(ARCHIVES / 'open_clip_checkpoint.pt')
  golden = load_golden('open_clip_vit')
  assert foreign.description.model == golden.config
  same_arrays(foreign.variables, golden.variables)
  assert 'does not say its activation' in foreign.guesses[0]


def test_hints_settle_the_activation_and_the_heads():
  path = ARCHIVES / 'open_clip_checkpoint.pt'
  foreign = read_published(path, hints=Hints(activation='gelu'))
  assert foreign.description.model.image.activation == 'gelu'
  assert foreign.description.model.text.activation == 'gelu'
  [guess] = foreign.guesses
  assert 'does not say its heads' in guess
  assert '2 heads in the image tower, 1 in the text tower' in guess
  hints = Hints(activation='gelu', heads=(2, 1))
  assert read_published(path, hints=hints).guesses == ()
  with pytest.raises(UsageError, match="activation='gleu'"):
    read_published(path, hints=Hints(activation='gleu'))


def test_a_preset_says_what_a_bare_file_does_not():
  path = ARCHIVES / 'open_clip_checkpoint.pt'
  with pytest.raises(FailureError, match='does not have the weights of its'):
    read_published(path, hints=Hints(preset='ViT-B-32'))
  with pytest.raises(UsageError, match="no preset 'ViT-B32'") as caught:
    read_published(path, hints=Hints(preset='ViT-B32'))
  assert 'info --all' in str(caught.value) and len(str(caught.value)) < 300


def test_a_weight_file_beside_its_config_is_read_by_it(tmp_path):
  shutil.copytree(GOLDENS / 'open_clip_vit_gelu', tmp_path / 'model')
  foreign = read_published(tmp_path / 'model' / 'model.safetensors')
  assert foreign.description.model.image.heads == 2  # 20 wide, not 64
  assert foreign.guesses == ()


def with_config(folder, config, weights='open_clip_model.safetensors'):
  """The golden ViT as an open_clip directory with this config."""
  folder.mkdir()
  (folder / 'open_clip_config.json').write_text(json.dumps(config))
  shutil.copy(GOLDENS / 'open_clip_vit' / 'model.safetensors', folder / weights)
  return folder


def golden_config():
  return json.loads((GOLDENS / 'open_clip_vit' / 'config.json').read_text())


def test_open_clips_preprocessing_is_read(tmp_path):
  preprocess = {
    'mean': [0.1, 0.2, 0.3],
    'std': [0.5, 0.5, 0.5],
    'interpolation': 'bilinear',
    'resize_mode': 'squash',
  }
  folder = with_config(
    tmp_path / 'm',
    {'model_cfg': golden_config(), 'preprocess_cfg': preprocess},
  )
  result = read_published(folder).description.preprocessing
  assert result.image_size == 64
  assert result.mean == (0.1, 0.2, 0.3)
  assert (result.interpolation, result.resize_mode) == ('bilinear', 'squash')


def test_open_clip_comes_before_transformers_where_a_directory_has_both(
  tmp_path,
):
  folder = with_config(tmp_path / 'm', {'model_cfg': golden_config()})
  for name in ('config.json', 'model.safetensors'):
    shutil.copy(GOLDENS / 'hf_clip' / name, folder / name)
  assert read_published(folder).layout == 'open_clip'
  (folder / 'open_clip_config.json').unlink()
  assert read_published(folder).layout == 'hugging_face'


def test_a_torch_file_in_a_directory_is_found(tmp_path):
  folder = tmp_path / 'm'
  folder.mkdir()
  shutil.copy(GOLDENS / 'open_clip_vit' / 'config.json', folder)
  shutil.copy(
    ARCHIVES / 'open_clip_checkpoint.pt',
    folder / 'open_clip_pytorch_model.bin',
  )
  same_arrays(
    read_published(folder).variables,
    load_golden('open_clip_vit').variables,
  )


@pytest.mark.parametrize(
  ('golden', 'index'),
  [
    ('open_clip_vit', 'open_clip_pytorch_model.bin.index.json'),
    ('open_clip_vit', 'open_clip_pytorch_model.safetensors.index.json'),
    ('hf_clip', 'pytorch_model.bin.index.json'),
    ('hf_clip', 'model.safetensors.index.json'),
  ],
)
def test_a_model_in_shards_is_found_by_its_index(golden, index, tmp_path):
  shutil.copy(GOLDENS / golden / 'config.json', tmp_path)
  weights = load_file(GOLDENS / golden / 'model.safetensors')
  write = write_state_dict if '.bin.' in index else save_into
  weight_map = {}
  for i, keys in enumerate((list(weights)[::2], list(weights)[1::2])):
    write(tmp_path / f'shard-{i}', {key: weights[key] for key in keys})
    weight_map |= dict.fromkeys(keys, f'shard-{i}')
  (tmp_path / index).write_text(json.dumps({'weight_map': weight_map}))
  same_arrays(read_published(tmp_path).variables, load_golden(golden).variables)


def save_into(path, tensors):
  save_file(tensors, path)


@pytest.mark.parametrize(
  ('part', 'fields', 'message'),
  [
    ('vision_cfg', {'ls_init_value': 1e-5}, 'vision_cfg.ls_init_value=1e-05'),
    ('vision_cfg', {'attentional_pool': True}, 'attentional_pool=True'),
    ('vision_cfg', {'sparkle': 1}, 'vision_cfg.sparkle=1'),
    ('vision_cfg', {'image_size': [64, 32]}, 'image_size=.* is not square'),
    ('vision_cfg', {'timm_model_name': 'convnext_base'}, 'convnext_base'),
    ('text_cfg', {'hf_model_name': 'roberta'}, "'roberta'"),
    ('text_cfg', {'qk_norm': True}, 'text_cfg.qk_norm=True'),
    ('text_cfg', {'pool_type': 'first'}, "pool_type='first'"),
    ('text_cfg', {'norm_kwargs': {'bias': False}}, 'norm_kwargs='),
    ('text_cfg', {'width': 'wide'}, 'is no model config'),
  ],
)
def test_what_open_clip_has_and_we_have_not_is_refused_by_name(
  tmp_path, part, fields, message
):
  config = golden_config()
  config[part] |= fields
  folder = with_config(tmp_path / 'm', {'model_cfg': config})
  with pytest.raises((UsageError, FailureError), match=message) as caught:
    read_published(folder)
  assert 'open_clip_config.json' in str(caught.value)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'model_type': 'blip'}, "model_type 'blip': clip, siglip and siglip2"),
    ({'text_config': {'hidden_act': 'relu'}}, "hidden_act='relu'"),
    ({'vision_config': {'num_channels': 1}}, 'num_channels=1'),
    ({'text_config': {'num_attention_heads': 5}}, 'does not split over'),
    ({'text_config': {'hidden_size': 'x'}}, 'is no config of a clip model'),
    ({'text_config': {'intermediate_size': 0}}, 'mlp_ratio=0.0 must be'),
    ({'vision_config': {'num_hidden_layers': 10**9}}, 'must be at most 1000'),
    ({'vision_config': {'image_size': 10**30}}, 'must be at most 16384'),
    ({'logit_scale_init_value': 1e30}, 'is no config of a clip model'),
  ],
)
def test_what_transformers_has_and_we_have_not_is_refused_by_name(
  tmp_path, fields, message
):
  folder = tmp_path / 'm'
  shutil.copytree(GOLDENS / 'hf_clip', folder)
  config = json.loads((folder / 'config.json').read_text())
  for key, value in fields.items():
    config[key] = {**config[key], **value} if isinstance(value, dict) else value
  (folder / 'config.json').write_text(json.dumps(config))
  with pytest.raises((UsageError, FailureError), match=message) as caught:
    read_published(folder)
  assert 'config.json' in str(caught.value)


def test_an_older_config_of_transformers_with_both_kinds_of_fields(tmp_path):
  folder = tmp_path / 'm'
  shutil.copytree(GOLDENS / 'hf_clip', folder)
  config = json.loads((folder / 'config.json').read_text())
  for tower in ('text_config', 'vision_config'):
    config[f'{tower}_dict'] = config[tower]
    config[tower] = {**config[tower], 'hidden_size': 1}
  (folder / 'config.json').write_text(json.dumps(config))
  model = read_published(folder).description.model
  assert model == load_golden('hf_clip').config


def test_files_without_a_model_are_refused(tmp_path):
  save_file({'a': np.zeros(1), 'b': np.zeros(1)}, tmp_path / 'x.safetensors')
  with pytest.raises(UsageError, match=r'holds no CLIP model: its keys \(a, b'):
    read_published(tmp_path / 'x.safetensors')
  shutil.copy(GOLDENS / 'hf_clip' / 'model.safetensors', tmp_path / 'y')
  with pytest.raises(UsageError, match=r'whose config.json is missing'):
    read_published(tmp_path / 'y')
  (tmp_path / 'config.json').write_text('{"model_type": ')
  with pytest.raises(FailureError, match=r'config.json is not JSON'):
    read_published(tmp_path / 'y')


def test_a_state_dict_without_a_tower_is_refused(tmp_path):
  weights = load_file(GOLDENS / 'open_clip_vit' / 'model.safetensors')
  visual = {k: v for k, v in weights.items() if k.startswith('visual.')}
  save_file(visual, tmp_path / 'visual.safetensors')
  with pytest.raises(FailureError, match='has not the keys of a CLIP model'):
    read_published(tmp_path / 'visual.safetensors')


def test_siglip_towers_of_timm_are_read_and_written_back(tmp_path):
  # The published B/16 is too large for a test: one block of it is enough.
  golden = load_golden('hf_siglip')
  table = openai.table(golden.config, openai.Variant('text.', trunk=True))
  theirs = layouts.write(golden.variables, table, golden.config)
  assert theirs['visual.trunk.attn_pool.latent'].shape == (1, 1, 48)
  assert theirs['visual.trunk.attn_pool.kv.weight'].shape == (96, 48)
  assert theirs['visual.trunk.blocks.1.attn.qkv.weight'].shape == (144, 48)
  assert theirs['text.text_projection.weight'].shape == (48, 36)
  save_file(theirs, tmp_path / 'siglip.safetensors')
  with pytest.raises(UsageError, match=r'needs its open_clip_config.json'):
    read_published(tmp_path / 'siglip.safetensors')


def test_a_preset_says_how_images_are_read_too(tmp_path, monkeypatch):
  golden = load_golden('hf_siglip')
  table = openai.table(golden.config, openai.Variant('text.', trunk=True))
  theirs = layouts.write(golden.variables, table, golden.config)
  save_file(theirs, tmp_path / 'siglip.safetensors')
  published = presets.find('ViT-B-16-SigLIP')
  tiny = dataclasses.replace(published, fields=golden.config.to_dict())
  monkeypatch.setitem(presets.PRESETS, 'tiny', tiny)
  foreign = read_published(
    tmp_path / 'siglip.safetensors', hints=Hints(preset='tiny')
  )
  same_arrays(foreign.variables, golden.variables)
  result = foreign.description.preprocessing
  assert (result.image_size, result.resize_mode) == (32, 'squash')
  assert result.mean == result.std == (0.5, 0.5, 0.5)


def test_a_preset_beside_a_config_is_refused(tmp_path):
  folder = with_config(tmp_path / 'm', {'model_cfg': golden_config()})
  with pytest.raises(UsageError, match=r"preset='ViT-B-32' is for a bare wei"):
    read_published(folder, hints=Hints(preset='ViT-B-32'))


def test_an_activation_that_a_config_leaves_out_can_be_given(tmp_path):
  config = golden_config()
  del config['quick_gelu']
  folder = with_config(tmp_path / 'm', {'model_cfg': config})
  assert read_published(folder).description.model.text.activation == 'gelu'
  foreign = read_published(folder, hints=Hints(activation='quick_gelu'))
  assert foreign.description.model == load_golden('open_clip_vit').config


def test_quantised_weights_are_refused(tmp_path):
  folder = tmp_path / 'm'
  shutil.copytree(GOLDENS / 'open_clip_vit', folder)
  weights = load_file(folder / 'model.safetensors')
  weights['ln_final.bias'] = weights['ln_final.bias'].astype(np.int8)
  save_file(weights, folder / 'model.safetensors')
  with pytest.raises(FailureError, match=r'ln_final.bias \(it holds int8\)'):
    read_published(folder)


@pytest.mark.parametrize(
  ('config', 'weights', 'message'),
  [
    ('hf_siglip', 'hf_clip', 'has the keys of a CLIP, and its config .* SigL'),
    ('hf_clip', 'hf_siglip', 'has the keys of a SigLIP, and its config .* CL'),
    ('open_clip_vit', 'hf_clip', "is open_clip's: they are of two models"),
    ('open_clip_vit', 'open_clip_resnet', 'does not have the weights of its'),
    ('open_clip_resnet', 'open_clip_vit', 'does not have the weights of its'),
  ],
)
def test_a_config_and_weights_of_two_models(tmp_path, config, weights, message):
  shutil.copy(GOLDENS / config / 'config.json', tmp_path)
  shutil.copy(GOLDENS / weights / 'model.safetensors', tmp_path)
  with pytest.raises(FailureError, match=message):
    read_published(tmp_path)


def test_a_preset_of_another_family_is_refused(tmp_path):
  path = GOLDENS / 'archives' / 'open_clip_checkpoint.pt'
  with pytest.raises(FailureError, match=r'keys of a CLIP, .* of a SigLIP'):
    read_published(path, hints=Hints(preset='ViT-B-16-SigLIP'))


def test_openais_weights_are_not_read_with_another_activation():
  path = ARCHIVES / 'openai_state_dict.pt'
  with pytest.raises(UsageError, match=r"is OpenAI's, .* is one with gelu"):
    read_published(path, hints=Hints(preset='ViT-B-32'))


@pytest.mark.parametrize(
  'config', [7, ['a'], None, {'model_cfg': 7}, {'model_cfg': ['a']}]
)
def test_what_is_no_config_of_open_clip_is_refused(tmp_path, config):
  folder = with_config(tmp_path / 'm', config)
  with pytest.raises(
    (UsageError, FailureError), match=r'open_clip_config\.json'
  ):
    read_published(folder)


@pytest.mark.parametrize('length', [10**5, 10**7, 10**9])
def test_a_context_that_the_weights_do_not_have_is_refused_at_no_cost(
  tmp_path, length
):
  config = golden_config()
  config['text_cfg']['context_length'] = length
  mask = np.zeros((2, 2), np.float32)
  folder = with_config(tmp_path / 'm', {'model_cfg': config})
  weights = load_file(GOLDENS / 'open_clip_vit' / 'model.safetensors')
  save_file({**weights, 'attn_mask': mask}, folder / 'model.safetensors')
  with pytest.raises((UsageError, FailureError), match='context_length='):
    read_published(folder)


@pytest.mark.parametrize('heads', [(2,), (2, 3)])
def test_heads_of_a_bare_file_are_those_that_are_said(tmp_path, heads):
  path = tmp_path / 'w.safetensors'
  shutil.copy(GOLDENS / 'open_clip_vit_gelu' / 'model.safetensors', path)
  result = read_published(path, hints=Hints(activation='gelu', heads=heads))
  model = result.description.model
  assert model.image.heads == 2
  assert model.text.heads == (heads[1] if len(heads) > 1 else 1)
  with pytest.raises(UsageError, match='of the image tower, or of the image a'):
    read_published(path, hints=Hints(heads=(1, 2, 3)))


def test_a_published_name_stands_for_a_missing_config_of_transformers(tmp_path):
  shutil.copy(GOLDENS / 'hf_clip' / 'model.safetensors', tmp_path)
  hints = Hints(preset='openai/clip-vit-base-patch32')
  with pytest.raises(FailureError, match='does not have the weights of its'):
    read_published(tmp_path / 'model.safetensors', hints=hints)


SIGLIP_2 = GOLDENS / 'hf_siglip2'  # of native aspect ratio (NaFlex)


def raw_images():
  inputs = load_file(SIGLIP_2 / 'inputs.safetensors')
  return [inputs[f'raw_image_{i}'] for i in range(5)]


def test_siglip_2_of_native_aspect_computes_what_transformers_does():
  model = load(SIGLIP_2)
  assert model.preprocessing == Preprocessing.native(
    4,
    20,
    interpolation='bilinear',
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    convention='transformers',
  )
  assert 'native aspect, 20 patches' in repr(model)
  outputs = load_file(SIGLIP_2 / 'outputs.safetensors')
  images = model.encode_image(raw_images())
  np.testing.assert_allclose(images, outputs['image_embeds'], atol=1e-5)
  ids = load_file(SIGLIP_2 / 'inputs.safetensors')['input_ids']
  texts = model.encode_tokens(ids)
  np.testing.assert_allclose(texts, outputs['text_embeds'], atol=1e-5)
  logits = model.logit_scale * images @ texts.T + model.logit_bias
  np.testing.assert_allclose(logits, outputs['logits_per_image'], atol=1e-4)


def test_siglip_2_of_native_aspect_reads_images_as_large_as_one_likes():
  model = load(SIGLIP_2, image_size=32)
  assert model.preprocessing.max_patches == 64
  tokens = model.image_tokens(raw_images()[:2], layer=-1)
  assert tokens.shape == (2, 64, 24)
  square = np.abs(tokens[1]).sum(1) > 0  # 16 x 16 pixels become 8 x 8 patches
  assert square.all()


def test_siglip_2_of_native_aspect_is_written_back(tmp_path):
  whole = read_published(SIGLIP_2)
  convert(whole.description, whole.variables, 'hf', tmp_path / 'out')
  again = read_published(tmp_path / 'out')
  same_arrays(again.variables, whole.variables)
  assert again.description.preprocessing == whole.description.preprocessing
  assert again.description.model.image == whole.description.model.image
  theirs = json.loads((SIGLIP_2 / 'config.json').read_text())
  ours = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert ours['architectures'] == theirs['architectures']
  for tower in ('vision_config', 'text_config'):
    shared = ours[tower].keys() & theirs[tower].keys() - {
      'bos_token_id',
      'pad_token_id',
    }
    assert {k: ours[tower][k] for k in shared} == {
      k: theirs[tower][k] for k in shared
    }
  with pytest.raises(UsageError, match='native aspect'):
    convert(whole.description, whole.variables, 'open_clip', tmp_path / 'no')


def test_positions_of_siglip_2_that_are_no_square_are_refused(tmp_path):
  shutil.copytree(SIGLIP_2, tmp_path / 'm')
  config = json.loads((SIGLIP_2 / 'config.json').read_text())
  config['vision_config']['num_patches'] = 15
  (tmp_path / 'm' / 'config.json').write_text(json.dumps(config))
  with pytest.raises(UsageError, match='num_patches=15 is no square'):
    read_published(tmp_path / 'm')
