"""What holds for all scripts."""

import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted([*ROOT.glob('launch/**/*.sh'), ROOT / '.ci/run'])


def shellcheck():
  """The one of the test extra, beside this Python, or the machine's."""
  beside = pathlib.Path(sys.executable).with_name('shellcheck')
  return str(beside) if beside.exists() else shutil.which('shellcheck')


def check(path):
  command = shellcheck()
  if command is None:
    pytest.skip('no shellcheck: pip install ".[test]" brings it')
  return subprocess.run(
    [command, '--external-sources', str(path)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda p: p.name)
def test_shellcheck(script):
  done = check(script)
  assert not done.returncode, done.stdout


def test_shellcheck_would_find_something(tmp_path):
  script = tmp_path / 'wrong.sh'
  script.write_text('#!/usr/bin/env bash\nrm $1\n')
  assert 'SC2086' in check(script).stdout


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda p: p.name)
def test_scripts_stop_at_the_first_error(script):
  text = script.read_text()
  sourced = text.startswith('# shellcheck shell=bash')
  assert sourced or 'set -euo pipefail' in text


def test_no_real_cloud_can_be_reached_from_a_test(project):
  for command in ('gcloud', 'kubectl', 'docker', 'sbatch'):
    assert project.run('bash', '-c', f'command -v {command}').returncode


def commands_shown():
  """The shell commands of launch/README.md, a line each."""
  text = (ROOT / 'launch/README.md').read_text()
  for block in text.split('```')[1::2]:
    for line in block.replace('\\\n', ' ').splitlines():
      if line.strip():
        yield shlex.split(line, comments=True)


@pytest.mark.parametrize('words', commands_shown(), ids=' '.join)
def test_the_commands_of_the_readme_are_taken(project, words):
  if 'setup.sh' in words[1] or 'clip-jax' in words[0]:
    pytest.skip('not a launcher')
  for name in ('vit_l14', 'vit_b32'):
    (project.folder / f'configs/{name}.py').touch()
  if words[0].endswith('python'):
    words = [sys.executable, *words[1:]]
  done = project.run(*words, '--dry-run')
  assert done.returncode == 0, done.stderr
  assert done.stdout
