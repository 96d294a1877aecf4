"""Compiled programs go to the user's cache folder, or nowhere."""

import os
import subprocess
import sys

import jax
import pytest
from PIL import Image

from clip_jax.parallel.devices import use_compilation_cache
from tests.golden_models import GOLDENS

KEY = 'jax_compilation_cache_dir'
MIN_SECONDS = 'jax_persistent_cache_min_compile_time_secs'


@pytest.fixture(autouse=True)
def clean(monkeypatch):
  before = {key: jax.config.values[key] for key in (KEY, MIN_SECONDS)}
  jax.config.update(KEY, None)
  jax.config.update(MIN_SECONDS, 1.0)
  for key in before:
    monkeypatch.delenv(key.upper(), raising=False)
  yield
  for key, value in before.items():
    jax.config.update(key, value)


def test_the_folder_of_the_user(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  use_compilation_cache()
  assert jax.config.values[KEY] == str(tmp_path / 'clip_jax' / 'xla')
  assert (tmp_path / 'clip_jax' / 'xla').is_dir()
  # What compiles in no time is kept, too: there is much of it.
  assert jax.config.values[MIN_SECONDS] == 0


def test_the_users_own_threshold_is_kept(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setenv(MIN_SECONDS.upper(), '1')
  use_compilation_cache()
  assert jax.config.values[MIN_SECONDS] == 1


_COUNTED = """
import collections, sys
from jax import monitoring
counts = collections.Counter()
monitoring.register_event_listener(lambda name, **_: counts.update([name]))
from clip_jax.__main__ import main
main(sys.argv[1:])
cache = '/jax/compilation_cache/'
print(counts[cache + 'cache_misses'], counts[cache + 'cache_hits'])
"""


@pytest.mark.slow
def test_a_second_classify_compiles_nothing(tmp_path):
  Image.new('RGB', (40, 30), 'red').save(tmp_path / 'a.png')
  command = [
    sys.executable, '-c', _COUNTED, 'classify', '--labels=cat,dog',
    f'--model={GOLDENS / "open_clip_vit_gelu"}', str(tmp_path / 'a.png'),
  ]  # fmt: skip
  counts = []
  for _ in range(2):
    done = subprocess.run(
      command, env=os.environ | {'XDG_CACHE_HOME': str(tmp_path)},
      capture_output=True, text=True, check=True,
    )  # fmt: skip
    counts.append([int(x) for x in done.stdout.split()[-2:]])
  (compiled, _), (again, read) = counts
  assert (again, read) == (0, compiled)
  assert compiled > 0


def test_the_environment_wins(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '')
  use_compilation_cache()
  assert jax.config.values[KEY] is None
  assert not list(tmp_path.iterdir())


def test_the_tilde_of_the_environment_is_the_home(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '~/programs')
  use_compilation_cache()
  assert jax.config.values[KEY] == str(tmp_path / 'programs')
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  monkeypatch.setenv('XDG_CACHE_HOME', '~/cache')
  use_compilation_cache()
  assert jax.config.values[KEY] == str(tmp_path / 'cache/clip_jax/xla')


def test_a_folder_that_cannot_be_made_is_left_alone(monkeypatch, tmp_path):
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  use_compilation_cache()
  assert jax.config.values[KEY] is None
