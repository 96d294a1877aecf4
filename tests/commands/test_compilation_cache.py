"""Compiled programs go to the user's cache folder, or nowhere."""

import jax
import pytest

from clip_jax.commands import compilation_cache

KEY = 'jax_compilation_cache_dir'


@pytest.fixture(autouse=True)
def clean(monkeypatch):
  before = jax.config.values[KEY]
  jax.config.update(KEY, None)
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  yield
  jax.config.update(KEY, before)


def test_the_folder_of_the_user(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  compilation_cache.use()
  assert jax.config.values[KEY] == str(tmp_path / 'clip_jax' / 'xla')
  assert (tmp_path / 'clip_jax' / 'xla').is_dir()


def test_the_environment_wins(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '')
  compilation_cache.use()
  assert jax.config.values[KEY] is None
  assert not list(tmp_path.iterdir())


def test_the_tilde_of_the_environment_is_the_home(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '~/programs')
  compilation_cache.use()
  assert jax.config.values[KEY] == str(tmp_path / 'programs')
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  monkeypatch.setenv('XDG_CACHE_HOME', '~/cache')
  compilation_cache.use()
  assert jax.config.values[KEY] == str(tmp_path / 'cache/clip_jax/xla')


def test_a_folder_that_cannot_be_made_is_left_alone(monkeypatch, tmp_path):
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  compilation_cache.use()
  assert jax.config.values[KEY] is None
