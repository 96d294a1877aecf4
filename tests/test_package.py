"""The public names, and what importing them costs."""

import subprocess
import sys

import pytest

import clip_jax

HEAVY = ('jax', 'flax', 'tensorflow', 'torch', 'matplotlib', 'pandas', 'numpy')


def test_importing_the_package_imports_nothing_heavy():
  code = (
    'import sys, clip_jax; '
    f'print([name for name in {HEAVY} if name in sys.modules])'
  )
  result = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert result.stdout.strip() == '[]'


@pytest.mark.parametrize('module', ['inference.model', 'evaluation', 'data'])
def test_nothing_brings_tensorflow_torch_or_plotting(module):
  heavy = {'tensorflow', 'torch', 'matplotlib', 'pandas'}
  code = (
    f'import sys, clip_jax.{module}; '
    f'print([name for name in {sorted(heavy)} if name in sys.modules])'
  )
  result = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert result.stdout.strip() == '[]'


def test_public_names_are_there():
  assert set(clip_jax.__all__) == {'Model', 'load', 'presets', 'tokenizers'}
  for name in (*clip_jax.__all__, '__version__'):
    assert getattr(clip_jax, name) is not None
    assert name in dir(clip_jax)
  assert 'ViT-B/32' in clip_jax.presets.PRESETS
  assert clip_jax.__version__[0].isdigit()


def test_other_names_are_not():
  with pytest.raises(AttributeError, match='nosuch'):
    clip_jax.nosuch  # noqa: B018
