"""What `python -m build` makes installs, and brings all that it reads."""

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def run(*words, cwd=ROOT):
  """The output of a command that sees neither this project nor a device."""
  environment = {
    name: value for name, value in os.environ.items() if name != 'PYTHONPATH'
  }
  done = subprocess.run(
    list(map(str, words)),
    cwd=cwd,
    env=environment | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert not done.returncode, done.stdout + done.stderr
  return done.stdout


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  """The folder with sdist and wheel; the wheel is built from the sdist."""
  source = tmp_path_factory.mktemp('project')
  for folder in ('clip_jax', 'configs', 'launch', 'tests'):
    shutil.copytree(
      ROOT / folder,
      source / folder,
      ignore=shutil.ignore_patterns('__pycache__', 'goldens'),
    )
  for file in ROOT.iterdir():
    if file.is_file() and file.name != '.git':
      shutil.copy(file, source)
  out = tmp_path_factory.mktemp('dist')
  run(sys.executable, '-m', 'build', '--outdir', out, source)
  return out


@pytest.fixture(scope='module')
def installed(built, tmp_path_factory):
  """A fresh environment with the wheel, and the packages of this one."""
  folder = tmp_path_factory.mktemp('environment')
  venv.create(folder, with_pip=False)
  python = folder / 'bin/python'
  (wheel,) = built.glob('*.whl')
  run(
    *(sys.executable, '-m', 'pip', '--python', python, 'install', '--quiet'),
    *('--no-deps', '--no-index', wheel),
  )
  site = run(python, '-c', 'import site; print(site.getsitepackages()[0])')
  # A path in such a file is searched, but an editable install there is not.
  packages = [path for path in sys.path if path.endswith('site-packages')]
  pathlib.Path(site.strip(), 'packages.pth').write_text('\n'.join(packages))
  return folder / 'bin'


def data_files():
  """Files of the package that are neither code nor images of its pages."""
  for path in (ROOT / 'clip_jax').rglob('*'):
    left_out = path.suffix in ('.py', '.pyc', '.png')
    if path.is_file() and not left_out:
      yield str(path.relative_to(ROOT))


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_its_data_files(built):
  (wheel,) = built.glob('clip_in_jax-*.whl')
  names = zipfile.ZipFile(wheel).namelist()
  assert set(data_files()) - set(names) == set()
  code = {
    str(path.relative_to(ROOT)) for path in (ROOT / 'clip_jax').rglob('*.py')
  }
  assert code - set(names) == set()
  assert {name.split('/')[0].split('-')[0] for name in names} == {
    'clip_jax', 'clip_in_jax',
  }  # fmt: skip


@pytest.mark.slow
def test_the_source_distribution_holds_recipes_and_launchers(built):
  (sdist,) = built.glob('clip_in_jax-*.tar.gz')
  with tarfile.open(sdist) as archive:
    names = {name.partition('/')[2] for name in archive.getnames()}
  assert set(data_files()) - names == set()
  for name in ('README.md', 'LICENSE', 'requirements.txt', 'setup.cfg'):
    assert name in names
  for folder in ('configs', 'launch'):
    files = [path for path in (ROOT / folder).rglob('*') if path.is_file()]
    for path in files:
      if path.suffix != '.pyc':
        assert str(path.relative_to(ROOT)) in names


@pytest.mark.slow
def test_the_installed_command_runs_anywhere(installed, tmp_path):
  overview = run(installed / 'clip-jax', '--help', cwd=tmp_path)
  assert overview.startswith('clip-jax: ')
  info = run(installed / 'clip-jax', 'info', '--preset=ViT-B/32', cwd=tmp_path)
  assert '151,277,313' in info


@pytest.mark.slow
def test_the_installed_package_reads_its_data_files(installed, tmp_path):
  assert 'cifar10' in run(
    installed / 'clip-jax', 'eval', '--list', cwd=tmp_path
  )
  code = """
import clip_jax
print(clip_jax.__file__)
print(clip_jax.__version__)
print(clip_jax.tokenizers.load('clip')(['a cat'])[0, :4].tolist())
"""
  output = run(installed / 'python', '-c', code, cwd=tmp_path)
  file, version, tokens = output.splitlines()
  assert file.startswith(str(installed.parent))
  assert version[0].isdigit() and version != '0+unknown'
  assert tokens == '[49406, 320, 2368, 49407]'
