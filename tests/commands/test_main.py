"""The command line's frame: help, exit codes, one line for each mistake."""

import fnmatch
import json
import os
import subprocess
import sys

import pytest
from PIL import Image

import clip_jax
from clip_jax import tokenizers
from clip_jax.__main__ import VERBS, main
from clip_jax.commands.data import ACTIONS
from tests.tiny import write_pairs


def call(capsys, *argv):
  code = main(argv)
  captured = capsys.readouterr()
  return code, captured.out, captured.err


def test_help_lists_every_verb(capsys):
  code, out, err = call(capsys, '--help')
  assert code == 0
  assert not err
  for verb in VERBS:
    assert f'  {verb} ' in out


@pytest.mark.parametrize('verb', VERBS)
def test_every_verb_has_help_with_examples(capsys, verb):
  code, out, _ = call(capsys, verb, '--help')
  assert code == 0
  assert 'usage:' in out
  assert f'clip-jax {verb}' in out
  assert 'example' in out
  assert '--debug' in out


@pytest.mark.parametrize('action', ACTIONS)
def test_every_action_of_data_has_help_with_its_own_flags(capsys, action):
  assert f'  {action} ' in call(capsys, 'data', '--help')[1]
  code, out, _ = call(capsys, 'data', action, '--help')
  assert code == 0
  assert f'usage:\n  clip-jax data {action} ' in out
  assert f'examples:\n  clip-jax data {action} ' in out
  assert ('--threshold' in out) == (action == 'dedup')
  assert ('--vocab_size' in out) == (action == 'tokenizer')


def test_version_is_that_of_the_package(capsys):
  code, out, _ = call(capsys, '--version')
  assert code == 0 and out == f'clip-jax {clip_jax.__version__}\n'


def test_help_needs_no_value(capsys):
  code, out, _ = call(capsys, 'classify', '--help=x')
  assert code == 0 and 'usage:' in out


@pytest.mark.parametrize(
  'argv, message',
  [
    (['nosuch'], "no verb 'nosuch': one of train"),
    (['searc'], 'plan, info, data, bench; the nearest is search.'),
    (['info', '--nosuch=1'], "Unknown command line flag 'nosuch'"),
    (['info', '--json=x'], '--json=x: this flag is on or off, so it takes tr'),
    (['train'], 'no --config'),
    (['train', '--config=nosuch.py', '--workdir=x'], 'no config file nosuch'),
    (['train', '--config=tests/tiny.py'], 'no --workdir'),
    (
      ['train', '--config=tests/tiny.py', '--workdir=setup.cfg'],
      '--workdir: setup.cfg is a file: name a folder.',
    ),
    (['train', 'x', '--config=tests/tiny.py'], 'takes flags only'),
    (
      ['train', '--config=tests/tiny.py', '--workdir=x', '--profile=3'],
      '--profile=3: expected STEP:COUNT',
    ),
    (
      ['train', '--config=tests/tiny.py', '--config.data.batchsize=3'],
      "no field 'data.batchsize'; the nearest is 'data.batch_size'",
    ),
    (
      ['train', '--config=tests/tiny.py', '--config.data.batch_size=abc'],
      "invalid literal for int() with base 10: 'abc'",
    ),
    (['train', '--config=setup.cfg', '--workdir=x'], 'cannot be run'),
    (['data', 'inspekt'], "data 'inspekt'? One of build, "),
    (['data'], 'data what? One of build, '),
    (['data', 'build'], 'data build what?'),
    (
      ['data', '--vocab_size=9', 'inspect', 'folder:x'],
      "Unknown command line flag 'vocab_size' (see clip-jax data inspect --h",
    ),
    (['data', 'inspect', 'folder:/nosuch'], '/nosuch'),
    (['data', 'tokenizer', '--data=x'], 'add --train'),
    (['data', 'tokenizer', '--train'], 'no --data'),
    (['bench', 'tokeniser'], "bench 'tokeniser'? One of train"),
    (['bench'], 'bench what? One of train'),
    (['bench', 'loss', '--batch=abc'], '--batch=abc'),
    (['bench', 'train', '--remat=some'], "--remat='some': choose one of none"),
    (['bench', 'encode', '--scaling'], 'bench train, not of bench encode'),
    (
      ['bench', 'loss', '--against=open_clip'],
      '--against is of bench train, encode, input, not of bench loss.',
    ),
    (['bench', 'curate', '--steps=3'], 'not of bench curate'),
    (
      ['bench', 'train', '--scaling', '--against=open_clip'],
      '--scaling goes without --against',
    ),
  ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(capsys, argv, message):
  code, out, err = call(capsys, *argv)
  assert code == 2
  assert not out
  assert err.startswith('error: ')
  assert err.count('\n') == 1
  assert message in err


def test_no_verb_shows_the_overview_and_is_a_wrong_call(capsys):
  code, out, err = call(capsys)
  assert (code, out) == (2, '')
  assert 'usage: clip-jax VERB' in err


def test_a_failure_of_the_system_is_exit_code_1(tmp_path):
  done = subprocess.run(
    [
      sys.executable, '-m', 'clip_jax', 'train', '--config=tests/tiny.py',
      '--workdir=/proc/nope', f'--config.data.train={write_pairs(tmp_path)}',
    ],
    capture_output=True,
    text=True,
    check=False,
  )  # fmt: skip
  assert done.returncode == 1
  assert done.stderr == 'error: /proc/nope: no such file or directory.\n'


def test_a_recipe_may_lie_anywhere(tmp_path):
  recipe = tmp_path / 'mine' / 'recipe.py'
  recipe.parent.mkdir()
  recipe.write_text(
    'from configs import base\n\n\n'
    'def get_config():\n  return base.get_config()\n'
  )
  done = subprocess.run(
    [sys.executable, '-m', 'clip_jax', 'train', f'--config={recipe}'],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert done.stderr.startswith('error: no --workdir')  # the config was read


def test_debug_shows_where(capsys):
  with pytest.raises(ValueError, match='no verb'):
    main(['nosuch', '--debug'])


def test_import_is_light():
  modules = subprocess.run(
    [sys.executable, '-c', 'import clip_jax, sys; print(*sys.modules)'],
    capture_output=True,
    text=True,
    check=True,
  ).stdout.split()
  heavy = {'tensorflow', 'torch', 'matplotlib', 'pandas', 'jax', 'flax'}
  assert not heavy & set(modules)


def test_help_imports_nothing_heavy():
  code = (
    'import sys; from clip_jax.__main__ import VERBS, main\n'
    'for verb in VERBS: main([verb, "--help"])\n'
    'print("\\n", *sys.modules)'
  )
  modules = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  ).stdout.split()
  assert not {'tensorflow', 'torch', 'jax', 'grain', 'pandas'} & set(modules)


def test_a_tokenizer_is_trained_and_used(capsys, tmp_path):
  path = tmp_path / 'pieces.model'
  code, out, _ = call(
    capsys, 'data', 'tokenizer', '--train', '--vocab_size=24', '--json',
    f'--data={write_pairs(tmp_path / "pairs")}', f'--out={path}',
  )  # fmt: skip
  assert code == 0
  assert json.loads(out)['path'] == str(path)
  assert tokenizers.load(f'sentencepiece:{path}').vocab_size == 24


def test_inspect_counts_and_draws(capsys, tmp_path):
  spec = write_pairs(tmp_path / 'pairs', count=5)
  sheet = tmp_path / 'sheet.png'
  code, out, _ = call(
    capsys, 'data', 'inspect', spec, f'--out={sheet}', '--json'
  )
  assert code == 0
  assert json.loads(out)['records'] == 5
  assert Image.open(sheet).width > 100


def test_a_sheet_of_another_format_is_refused(capsys, tmp_path):
  spec = write_pairs(tmp_path / 'pairs')
  sheet = tmp_path / 'sheet.jpg'
  code, _, error = call(capsys, 'data', 'inspect', spec, f'--out={sheet}')
  assert code == 2
  assert error == f'error: --out={sheet}: name a file that ends in .png.\n'
  assert not sheet.exists()


@pytest.mark.parametrize(
  'installed, devices, said, expected',
  [
    (True, [], None, 'cpu'),
    (True, ['/dev/accel0'], None, None),
    (True, ['/dev/nvidia0'], None, None),
    (True, [], 'tpu', 'tpu'),
    (False, [], None, None),
  ],
)
def test_libtpu_is_left_alone_without_a_tpu(
  monkeypatch, installed, devices, said, expected
):
  monkeypatch.delenv('JAX_PLATFORMS')
  if said:
    monkeypatch.setenv('JAX_PLATFORMS', said)
  monkeypatch.setattr(
    'importlib.util.find_spec', lambda name: installed or None
  )
  monkeypatch.setattr(
    'glob.glob',
    lambda pattern: [d for d in devices if fnmatch.fnmatch(d, pattern)],
  )
  main(['nosuch'])
  assert os.environ.get('JAX_PLATFORMS') == expected
