"""The walk of clip_jax/data/README.md: from images, URLs and tars to a run."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tarfile
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / 'clip_jax' / 'data' / 'README.md'
HEADING = '## From images, tars or URLs to a run\n'


def _blocks():
  """The code blocks of the walk: language and code."""
  section = PAGE.read_text().split(HEADING)[1].split('\n## ')[0]
  for block in section.split('```')[1::2]:
    language, _, code = block.partition('\n')
    yield language, code


def _wait_for(port):
  for _ in range(600):
    with socket.socket() as connection:
      if connection.connect_ex(('127.0.0.1', port)) == 0:
        return
    time.sleep(0.1)
  raise AssertionError('the server did not start')


def _write_as_img2dataset(folder):
  """Tars in its layout, where it is not installed: by the same writer."""
  import webdataset

  out = folder / 'img2dataset'
  out.mkdir()
  for path in sorted((folder / 'fetched').glob('*.tar')):
    with (
      tarfile.open(path) as tar,
      webdataset.TarWriter(str(out / path.name)) as writer,
    ):
      while member := tar.next():
        key, _, suffix = member.name.partition('.')
        sample = {'__key__': key, suffix: tar.extractfile(member).read()}
        for _ in range(2):
          other = tar.next()
          name = other.name.partition('.')[2]
          sample[name] = tar.extractfile(other).read()
        sample['json'] = json.loads(sample['json'])
        sample['txt'] = sample['txt'].decode()
        writer.write(sample)


@pytest.mark.slow
def test_every_command_of_the_walk_works_as_it_is_written(
  tmp_path, emoji_folder
):
  """Only the port is another one, as tests may run beside each other."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  command = tmp_path / 'bin' / 'clip-jax'
  command.parent.mkdir()
  command.write_text(f'#!/bin/sh\nexec {sys.executable} -m clip_jax "$@"\n')
  command.chmod(0o755)
  (tmp_path / 'configs').symlink_to(ROOT / 'configs')
  environment = os.environ | {
    'PYTHONPATH': str(ROOT),
    'PATH': f'{command.parent}:{os.environ["PATH"]}',
  }
  servers = []

  def run(*argv):
    done = subprocess.run(
      argv, cwd=tmp_path, env=environment, capture_output=True, text=True,
      check=False,
    )  # fmt: skip
    assert done.returncode == 0, (argv, done.stdout[-2000:], done.stderr)

  try:
    for language, code in _blocks():
      code = code.replace('8765', str(port))
      if language == 'python':
        run(sys.executable, '-c', code)
        continue
      for line in code.replace('\\\n', ' ').splitlines():
        if line.endswith('&'):
          servers.append(
            subprocess.Popen(
              ['bash', '-c', f'exec {line[:-1]}'],
              cwd=tmp_path,
              stderr=subprocess.DEVNULL,
            )
          )
          _wait_for(port)
        elif line.startswith('img2dataset') and not shutil.which('img2dataset'):
          _write_as_img2dataset(tmp_path / 'runs' / 'walk')
        else:
          run('bash', '-c', line)
  finally:
    for server in servers:
      server.kill()
      server.wait()
  for name in ('from_folder', 'from_urls', 'from_tars'):
    lines = (tmp_path / 'runs/walk' / name / 'metrics.jsonl').read_text()
    assert json.loads(lines.splitlines()[-1])['step'] == 20
