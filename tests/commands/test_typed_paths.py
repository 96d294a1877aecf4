"""Every path that a person types has its `~` expanded."""

import os

import pytest
from absl import flags

import clip_jax
from clip_jax import tokenizers
from clip_jax.__main__ import VERBS, find_command
from clip_jax.commands.common_flags import PathParser, words_of
from clip_jax.commands.data import ACTIONS
from clip_jax.data import built_in
from clip_jax.data.inspect import inspect
from clip_jax.data.sources import open_source
from clip_jax.data.text_lines import TextLines
from clip_jax.errors import FailureError, UsageError
from clip_jax.evaluation.datasets import presence
from clip_jax.evaluation.datasets.opening import open_dataset
from clip_jax.inference.references import recognise
from clip_jax.training import workdir as workdirs
from clip_jax.training.run import open_evaluation_source, open_training_sources
from tests.data.images import captioned_folder
from tests.tiny import tiny_config

# Flags with a text that is no path, or that holds one which what reads it
# expands: a SPEC, a tokenizer, @FILE. A new flag belongs here, or is one of
# `common_flags.define_path`.
_NO_PATHS = {
  'preset', 'activation', 'dtype', 'platforms', 'to', 'topology', 'profile',
  'shard', 'task', 'suite', 'tasks', 'published', 'detector', 'shots', 'kind',
  'model_type', 'captions', 'objective', 'remat', 'against', 'text', 'only',
  'weights', 'url_column', 'caption_column', 'resize', 'image_format',
  'user_agent', 'engine', 'beam_options', 'shard_bytes', 'format',
  'decode', 'text_column', 'image_column', 'id_column', 'width_column',
  'height_column', 'score_column', 'hash_column', 'embedding_column',
  'balance', 'copies', 'alpha', 'soup',
}  # fmt: skip
_HELD = {
  'images', 'data', 'train', 'validation', 'overlap_with', 'datasets',
  'tokenizer', 'templates', 'labels', 'evaluation', 'others',
}  # fmt: skip


def _values_of(command: str) -> flags.FlagValues:
  """The flags of a verb, or of an action of `data`."""
  values = flags.FlagValues()
  verb, *action = command.split()
  find_command(verb, action)[1].define_flags(values)
  return values


def _flags() -> list[tuple[str, str]]:
  commands = [verb for verb in VERBS if verb != 'data']
  commands += [f'data {action}' for action in ACTIONS]
  return [(name, flag) for name in commands for flag in _values_of(name)]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
  """A home folder; the current one must stay as it is."""
  home, here = tmp_path / 'home', tmp_path / 'here'
  home.mkdir()
  here.mkdir()
  monkeypatch.setenv('HOME', str(home))
  monkeypatch.chdir(here)
  yield home
  assert os.listdir(here) == []


@pytest.mark.parametrize(('command', 'name'), _flags())
def test_a_flag_takes_a_path_or_is_known_not_to(command, name, home):
  values = _values_of(command)
  flag = values[name]
  if isinstance(flag.parser, PathParser):
    values(['clip-jax', f'--{name}=~/x'])
    given = flag.value[-1] if isinstance(flag.value, list) else flag.value
    assert given == str(home / 'x')
    values(['clip-jax', f'--{name}=gs://bucket/x'])
    given = flag.value[-1] if isinstance(flag.value, list) else flag.value
    assert given == 'gs://bucket/x'
  elif flag.flag_type() in ('string', 'multi string', 'comma separated list'):
    known = _NO_PATHS | _HELD
    assert name in known, f'--{name} of {command}: define_path, or say why not'


@pytest.mark.parametrize(
  'flag', ['labels', 'templates', 'queries', 'class_names', 'texts']
)
def test_lists_are_read_from_the_home(flag, home):
  (home / 'names.txt').write_text('cat {}\n')
  assert words_of(flag, '@~/names.txt') == ['cat {}']
  assert list(TextLines('~/names.txt')) == ['cat {}']


def test_data_sets_are_read_from_the_home(home):
  captioned_folder(home / 'pictures', 2)
  table = 'image,caption\n~/pictures/000.png,one\n'
  (home / 'table.csv').write_text(table)
  for spec, count in (
    ('folder:~/pictures', 2),
    ('folder:~#pictures', 2),
    ('csv:~/table.csv', 1),
  ):
    assert len(open_source(spec)) == count
    dataset = open_dataset(spec, train=spec)
    assert dataset.train and len(dataset.train.source) == count
    config = tiny_config()
    config.data.train = f'{spec}::{spec}'
    assert [len(x) for x in open_training_sources(config)] == [count, count]
    config.evaluation.data = spec
    config.evaluation.tasks = ('retrieval',)
    source = open_evaluation_source(config)
    assert source and len(source) == count
  assert open_source('csv:~/table.csv')[0]['image'].startswith(b'\x89PNG')


def test_sheets_and_vocabularies_are_written_to_the_home(home):
  captioned_folder(home / 'pictures', 2)
  inspect('folder:~/pictures', sheet_path='~/sheet.png')
  assert (home / 'sheet.png').is_file()


def test_tokenizers_are_read_from_the_home(home):
  for spec in ('sentencepiece:~/x', 'siglip:~/x', 'hf:~/x'):
    with pytest.raises((UsageError, FailureError), match=f'{home}/x'):
      tokenizers.load(spec)


def test_models_are_read_from_the_home(home):
  for call in (recognise, clip_jax.load):
    with pytest.raises(ValueError, match=f'no model in {home}/run'):
      call('~/run')


def test_a_run_is_written_to_the_home(home):
  with workdirs.open_workdir('~/run') as place:
    assert place.name == str(home / 'run')
    assert place.folder == home / 'run'


def test_configs_are_read_from_the_home(home, clip_jax):
  (home / 'recipe.py').write_text('from configs.base import get_config\n')
  result = clip_jax(
    'train', '--config=~/recipe.py', '--workdir=~/run', '--config.nothing=1'
  )
  assert result.code == 2
  assert "no field 'nothing'" in result.err


def test_environment_variables_are_expanded(home, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', '~/tfds')
  monkeypatch.setenv('CLIP_JAX_DATA', '~/data')
  assert built_in.tfds_folder() == str(home / 'tfds')
  assert presence.data_root() == home / 'data'


def test_an_unknown_user_is_one_clear_line(refused):
  refused("no user 'nobody-here'", 'info', '--model=~nobody-here/run')
