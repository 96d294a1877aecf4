"""What holds for all scripts."""

import pathlib
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
