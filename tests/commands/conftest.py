"""One trained-looking run, some images, and the command line as a call."""

import json
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from clip_jax.__main__ import main
from tests.tiny_run import write_run


class Result(NamedTuple):
  """How one command line ended."""

  code: int
  out: str
  err: str

  @property
  def json(self) -> Any:
    """The one JSON document of stdout."""
    return json.loads(self.out)


@pytest.fixture
def clip_jax(capsys):
  """`clip_jax('classify', '--model=…')`, in this process."""

  def call(*argv) -> Result:
    capsys.readouterr()
    code = main([str(word) for word in argv])
    out, err = capsys.readouterr()
    assert 'Traceback' not in err
    return Result(code, out, err)

  return call


@pytest.fixture
def refused(clip_jax):
  """Calls, and checks for exit code 2 and one line that says `message`."""

  def call(message, *argv) -> None:
    result = clip_jax(*argv)
    assert result.code == 2, result
    assert result.out == ''
    lines = result.err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith('error: ')
    assert message in lines[0]

  return call


@pytest.fixture(scope='session')
def workdir(tmp_path_factory):
  return write_run(tmp_path_factory.mktemp('run'))


@pytest.fixture(scope='session')
def photos(tmp_path_factory):
  """A folder of classes: three red squares, two cat faces."""
  folder = tmp_path_factory.mktemp('pictures')
  rng = np.random.default_rng(0)
  for name, count in (('red_square', 3), ('cat_face', 2)):
    (folder / name).mkdir()
    for i in range(count):
      pixels = rng.integers(0, 256, (18, 20, 3), dtype=np.uint8)
      Image.fromarray(pixels).save(folder / name / f'{i}.png')
  return folder
