"""A config becomes a run, or one clear line."""

import re

import pytest
from absl import flags

from clip_jax.commands.config_file import define_config, parse
from clip_jax.errors import UsageError
from clip_jax.models.config import ResNetConfig
from clip_jax.parallel import distributed
from clip_jax.tokenizers import sentence_piece
from clip_jax.training.config import with_defaults
from clip_jax.training.run import prepare_run
from clip_jax.training.vocabulary import train_vocabulary
from tests.tiny import tiny_config, write_pairs


@pytest.fixture
def config(tmp_path):
  config = tiny_config()
  config.data.train = write_pairs(tmp_path / 'pictures')
  return config


def test_the_description_says_all_that_a_model_needs(config):
  config.data.resize_mode = 'squash'
  run = prepare_run(with_defaults(config))
  description = run.description
  assert description.model.text.vocab_size == 49_408
  assert description.model.text.end_token == 49_407
  assert description.model.text.context_length == 16
  assert description.preprocessing.image_size == 16
  assert description.preprocessing.resize_mode == 'squash'
  assert description.preprocessing.background == 'white'
  assert description.preprocessing.exif
  assert description.tokenizer['kind'] == 'clip'


def test_transparency_can_be_dropped_as_the_published_models_do(config):
  config.data.update(background='', exif=False)
  preprocessing = prepare_run(with_defaults(config)).description.preprocessing
  assert preprocessing.background is None
  assert not preprocessing.exif


def test_a_preset_needs_nothing_else(config):
  fresh = tiny_config()
  for tower in ('image', 'text'):
    for name in fresh.model[tower]:
      config.model[tower][name] = None
  config.model.embed_dim = None
  config.model.preset = 'ViT-B/32'
  run = prepare_run(with_defaults(config))
  assert run.description.model.embed_dim == 512
  assert run.description.model.text.context_length == 77


def test_single_fields_of_a_preset_are_replaced(config):
  config.model.preset = 'ViT-B/16'
  model = prepare_run(with_defaults(config)).description.model
  assert model.image.patch_size == 8
  assert model.image.activation == 'quick_gelu'


def test_batches_depend_on_seed_and_step_alone(config):
  first = prepare_run(with_defaults(config)).batches(0)
  expected = [next(first) for _ in range(4)][3]
  again = next(prepare_run(with_defaults(config)).batches(3))
  assert (expected['image'] == again['image']).all()
  assert (expected['tokens'] == again['tokens']).all()
  first.close()


def test_a_vocabulary_is_trained_where_there_is_none(config, tmp_path, capsys):
  path = tmp_path / 'vocabulary.model'
  config.tokenizer = f'sentencepiece:{path}'
  config.tokenizer_training.vocab_size = 24
  assert (
    prepare_run(with_defaults(config)).description.model.text.vocab_size == 24
  )
  assert 'training a vocabulary of 24 pieces' in capsys.readouterr().err
  before = path.read_bytes()
  prepare_run(with_defaults(config))
  assert path.read_bytes() == before
  assert not capsys.readouterr().err


@pytest.mark.parametrize(
  'field, value, message',
  [
    ('data.train', '', 'data.train is empty'),
    ('data.train', 'zip:x', "data 'zip:x'"),
    ('data.weights', (1.0, 2.0), 'data.weights has 2 numbers for 1 data sets'),
    ('data.batch_size', 12, 'data.batch_size=12 does not split over 8'),
    ('data.image_size', 32, 'contradict'),
    ('total_steps', 0, 'total_steps=0 must be at least 1'),
    ('seed', -1, 'seed=-1 must be at least 0'),
    ('checkpoint.keep', 0, 'checkpoint.keep=0 must be at least 1'),
    ('model.dtype', 'float8', "model.dtype='float8': choose one of float32"),
    ('model.remat', 'some', "model.remat='some': choose one of none, dots"),
    ('model.preset', 'ViT-B/33', "did you mean 'ViT-B/32'"),
    ('model.image.heads', 5, 'does not split over model.image.heads=5'),
    ('model.image.patch_size', 17, 'is smaller than model.image.patch_size'),
    ('model.image.layers', (1, 1, 1, 1), 'layers makes a ResNet, which has no'),
    ('model.text.pooling', 'first', 'choose one of end, highest, last'),
    ('model.image.pooling', 'max', 'choose one of class_token, average'),
    ('model.text.activation', 'relu', 'choose one of quick_gelu, gelu'),
    ('objective.name', 'triplet', "objective.name='triplet'"),
    ('objective.form', 'rings', "objective.form='rings'"),
    ('optimizer.mu_dtype', 'int8', "optimizer.mu_dtype='int8'"),
    ('optimizer.warmup_steps', 12, 'below total_steps=12'),
    ('evaluation.tasks', ('guess',), "no task 'guess'"),
    ('evaluation.tasks', ('zero_shot',), 'evaluation.data is empty'),
    ('evaluation.batch_size', 0, 'evaluation.batch_size=0 must be at least 1'),
    ('checkpoint.best_metric', 'eval/zero_shot/top1', 'is not measured'),
    ('checkpoint.best_metric', 'eval/loss', 'is not measured: use eval/TASK/'),
    ('tokenizer', 'words', 'words'),
    ('data.mean', (0.5,), 'mean=(0.5,)'),
    ('data.std', (0.5, 0.5, 0.0), 'std=(0.5, 0.5, 0.0)'),
    ('data.resize_to', (10, 10), 'resize_to=(10, 10) with resize_mode'),
    ('data.interpolation', 'cubic', "interpolation='cubic': use one of"),
    ('initialize_text_positions', 'x', 'choose one of append, interpolate'),
    ('mesh.fsdp', 3, 'does not fit 8 devices'),
  ],
)
def test_an_impossible_field_is_one_clear_line(config, field, value, message):
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UsageError, match=re.escape(message)) as caught:
    prepare_run(with_defaults(config))
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'tasks': ('zero_shot',)}, 'has no labels, which zero_shot needs'),
    ({'tasks': ('bias',)}, 'has no labels, which bias needs'),
    ({'tasks': ('linear_probe',)}, "has 'linear_probe', which needs other"),
    ({'tasks': ('few_shot',)}, 'eval --task=few_shot` on what was trained'),
    ({'tasks': ('robustness',)}, "has 'robustness', which needs other data"),
    ({'tasks': ('overlap',)}, "has 'overlap', which needs other data"),
    ({'tasks': ('captioning',)}, 'needs a decoder that writes: say model.dec'),
    ({'templates': ('a photo',)}, 'has no slot'),
    ({'captions': ('title',)}, 'title'),
  ],
)
def test_evaluations_are_checked_before_training(config, changes, message):
  config.evaluation.update(data=config.data.train, **changes)
  if 'captions' in changes:
    config.evaluation.data = 'tfds:emoji#test'
  with pytest.raises(UsageError, match=re.escape(message)):
    prepare_run(with_defaults(config))


def test_a_vocabulary_larger_than_the_captions_give_is_said(
  config, tmp_path, capsys
):
  config.tokenizer = f'sentencepiece:{tmp_path / "pieces.model"}'
  config.tokenizer_training.vocab_size = 9_000
  size = prepare_run(with_defaults(config)).description.model.text.vocab_size
  assert size < 100
  assert f'give no more than {size} pieces' in capsys.readouterr().err


def test_pixels_are_as_the_config_says(config):
  config.data.update(mean=(0.5, 0.4, 0.3), interpolation='bilinear')
  preprocessing = prepare_run(with_defaults(config)).description.preprocessing
  assert preprocessing.mean == (0.5, 0.4, 0.3)
  assert preprocessing.interpolation == 'bilinear'


def test_a_vocabulary_of_other_captions_is_refused(config, tmp_path):
  config.tokenizer = f'sentencepiece:{tmp_path / "pieces.model"}'
  config.tokenizer_training.vocab_size = 24
  prepare_run(with_defaults(config))
  config.tokenizer_training.vocab_size = 25
  with pytest.raises(UsageError, match='was trained on other captions'):
    prepare_run(with_defaults(config))


def test_somebodys_own_vocabulary_is_taken_as_it_is(config, tmp_path):
  path = tmp_path / 'own.model'
  sentence_piece.train(['picture number 0123456789'], 24, path)
  before = path.read_bytes()
  config.tokenizer = f'sentencepiece:{path}'
  config.tokenizer_training.vocab_size = 25
  prepare_run(with_defaults(config))
  assert path.read_bytes() == before


def test_a_missing_field_is_named(config):
  config.model.image.width = None
  with pytest.raises(UsageError, match=r'missing model\.image\.width: say'):
    prepare_run(with_defaults(config))


def typed(*words):
  """The config of a command line."""
  values = flags.FlagValues()
  define_config(values)
  parse(values, ['clip-jax', *words])
  return values.config


def test_a_published_resnet_from_the_command_line(config):
  typed_config = typed(
    '--config=configs/base.py',
    '--config.model.preset=RN50',
    '--config.model.image.layers=(1,1,1,1)',
    f'--config.data.train={config.data.train}',
    '--config.data.batch_size=16',
  )
  run = prepare_run(with_defaults(typed_config))
  image = run.description.model.image
  assert image == ResNetConfig(224, (1, 1, 1, 1), width=64, heads=32)
  assert set(run.program.state.batch_stats['image']) == {
    'stem', 'stage1_0', 'stage2_0', 'stage3_0', 'stage4_0',
  }  # fmt: skip


@pytest.mark.parametrize(
  ('preset', 'field', 'message'),
  [
    ('RN50', 'patch_size=16', 'has no patch_size: its fields are image_size,'),
    ('ViT-B/32', 'layers=(1,1,1,1)', 'has no patch_size, depth, mlp_ratio'),
    ('RN50', 'layers=(1,1,1)', 'give the blocks of four stages'),
    ('RN50', 'layers=3', 'give the blocks of four stages, as in (3, 4, 6, 3)'),
    ('RN50', 'width=63', 'model.image.width=63 must be even'),
    ('RN50', 'heads=0', 'model.image.heads=0 must be at least 1'),
    ('RN50', 'image_size=100', 'not a multiple of 32'),
  ],
)
def test_fields_of_another_tower_are_one_clear_line(
  config, preset, field, message
):
  typed_config = typed(
    '--config=configs/base.py',
    f'--config.model.preset={preset}',
    f'--config.model.image.{field}',
    f'--config.data.train={config.data.train}',
    '--config.data.batch_size=16',
  )
  with pytest.raises(UsageError, match=re.escape(message)) as caught:
    prepare_run(with_defaults(typed_config))
  assert 'model.image' in str(caught.value)
  assert '\n' not in str(caught.value)


def test_a_text_pooled_at_its_highest_id_needs_the_end_there(config, tmp_path):
  config.model.text.pooling = 'highest'
  assert (
    prepare_run(with_defaults(config)).description.model.text.pooling
    == 'highest'
  )
  config.tokenizer = f'sentencepiece:{tmp_path / "pieces.model"}'
  config.tokenizer_training.vocab_size = 24
  with pytest.raises(UsageError, match="of 24: take 'end'"):
    prepare_run(with_defaults(config))


def test_images_without_captions_are_refused_before_anything_is_made(
  config, tmp_path
):
  for text in (tmp_path / 'pictures').glob('*.txt'):
    text.unlink()
  with pytest.raises(UsageError, match=r'no captions to train on.*filename'):
    prepare_run(with_defaults(config))


def test_a_host_without_the_tokenizers_file_is_told_what_would_be_right(
  tmp_path, monkeypatch
):
  config = tiny_config()
  config.tokenizer = f'sentencepiece:{tmp_path / "absent.model"}'
  monkeypatch.setattr(distributed, 'is_first_process', lambda: False)
  with pytest.raises(UsageError, match='copy it to the same path on each'):
    train_vocabulary(config, [])
