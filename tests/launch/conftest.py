"""A small project with the launchers in it, and a PATH of stand-ins."""

import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.waiting import PATIENCE

ROOT = pathlib.Path(__file__).parents[2]
COMMANDS = (
  *('bash', 'cat', 'chmod', 'cksum', 'date', 'dirname', 'env', 'flock', 'gzip'),
  *('kill', 'ls', 'mkdir', 'rm', 'seq', 'setsid', 'sleep', 'tail', 'tar'),
  *('touch', 'true'),
)
# What a machine that trains needs of the project, and what tpu_pod.sh copies.
FILES = ('requirements.txt', 'setup.cfg', 'pyproject.toml', 'LICENSE')


class Project:
  """A folder with launch/ as it is, where commands come from `bin` alone.

  No command of the machine's own cloud tools can be reached from it.
  """

  def __init__(self, folder: pathlib.Path) -> None:
    self.folder = folder / 'project'
    self.bin = folder / 'bin'
    self.bin.mkdir()
    for command in COMMANDS:
      (self.bin / command).symlink_to(str(shutil.which(command)))
    shutil.copytree(ROOT / 'launch', self.folder / 'launch')
    for name in ('clip_jax', 'configs'):
      (self.folder / name).mkdir()
    (self.folder / 'configs/emoji.py').touch()
    for name in (*FILES, 'README.md'):
      (self.folder / name).touch()
    self.environment = {
      'PATH': str(self.bin),
      'HOME': str(folder),
      'POLL_SECONDS': '0',
      'TMPDIR': str(folder),
    }

  def put(self, path: str, text: str) -> None:
    """Writes an executable file in the project's folder."""
    file = self.folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)

  def command(self, name: str, text: str) -> None:
    """A stand-in for a command, as a Bash script."""
    self.put(str(self.bin / name), f'#!/usr/bin/env bash\n{text}\n')

  def python_command(self, name: str, script: pathlib.Path) -> None:
    """A stand-in for a command, as a Python script."""
    self.command(name, f'exec {sys.executable} {script} "$@"')

  def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs a command in the folder, with `environment` besides."""
    return subprocess.run(
      words,
      cwd=self.folder,
      env=self.environment | environment,
      capture_output=True,
      text=True,
      timeout=PATIENCE,
      check=False,
    )


@pytest.fixture
def project(tmp_path):
  return Project(tmp_path)


def one_error_line(done: subprocess.CompletedProcess) -> str:
  """What was said of a failure, where it was one line and nothing else."""
  lines = done.stderr.splitlines()
  assert len(lines) == 1, done.stderr
  assert lines[0].startswith('error: ')
  return lines[0]
