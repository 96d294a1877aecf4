"""A workdir belongs to one config."""

import json
import re

import pytest

from clip_jax.errors import FailureError, UsageError
from clip_jax.training import run_directory
from tests.tiny import tiny_config


def test_the_config_is_written_in_full(tmp_path):
  workdir = tmp_path / 'a' / 'run'
  run_directory.check(workdir, tiny_config())
  with run_directory.claimed(workdir, tiny_config()):
    pass
  config = json.loads((workdir / 'config.json').read_text())
  assert config['optimizer']['b2'] == 0.98
  assert config['model']['image']['mlp_ratio'] is None
  assert config['evaluation']['templates'] == ['{}']
  assert {path.name for path in workdir.iterdir()} == {'config.json', '.lock'}


def test_the_same_config_is_welcome_again(tmp_path):
  with run_directory.claimed(tmp_path, tiny_config()):
    pass
  run_directory.check(tmp_path, tiny_config())


@pytest.mark.parametrize(
  'field, value, message',
  [
    ('seed', 3, 'seed=3 (the run has 0)'),
    ('optimizer.b2', 0.9, 'optimizer.b2=0.9 (the run has 0.98)'),
    ('model.image.width', 64, 'model.image.width=64 (the run has 32)'),
    ('total_steps', 99, 'total_steps=99 (the run has 12)'),
  ],
)
def test_a_field_that_changes_the_numbers_is_refused(
  tmp_path, field, value, message
):
  with run_directory.claimed(tmp_path, tiny_config()):
    pass
  config = tiny_config()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UsageError, match=re.escape(message)):
    run_directory.check(tmp_path, config)


@pytest.mark.parametrize(
  'field, value',
  [
    ('mesh.fsdp', 2),
    ('data.workers', 3),
    ('checkpoint.keep', 9),
    ('evaluation.every_steps', 2),
    ('log_every_steps', 1),
  ],
)
def test_a_field_that_does_not_may_change(tmp_path, field, value):
  with run_directory.claimed(tmp_path, tiny_config()):
    pass
  config = tiny_config()
  config.update_from_flattened_dict({field: value})
  run_directory.check(tmp_path, config)


def test_a_damaged_config_is_said(tmp_path):
  (tmp_path / 'config.json').write_text('{"seed": ')
  with pytest.raises(FailureError, match=r'config.json is not JSON'):
    run_directory.check(tmp_path, tiny_config())


def test_two_runs_in_one_workdir_are_refused(tmp_path):
  with (
    run_directory.claimed(tmp_path, tiny_config()),
    pytest.raises(UsageError, match='another process trains in'),
    run_directory.claimed(tmp_path, tiny_config()),
  ):
    pass
  with run_directory.claimed(tmp_path, tiny_config()):
    pass
