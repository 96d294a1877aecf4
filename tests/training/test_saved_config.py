"""A workdir belongs to one config."""

import json
import os
import re

import pytest

import tests.tiny
from clip_jax.errors import FailureError, UsageError
from clip_jax.training import saved_config
from clip_jax.training.config import check_config, with_defaults
from clip_jax.training.run import complete_config
from clip_jax.training.workdir import Workdir


def at(folder):
  return Workdir(folder, folder)


def tiny_config():
  """With nothing left open, as a run has it."""
  return with_defaults(tests.tiny.tiny_config())


def test_the_config_is_written_in_full(tmp_path):
  workdir = tmp_path / 'a' / 'run'
  saved_config.check_saved_config(at(workdir), tiny_config())
  with saved_config.claim_workdir(at(workdir), tiny_config()):
    pass
  config = json.loads((workdir / 'config.json').read_text())
  assert config['optimizer']['b2'] == 0.98
  assert config['model']['image']['mlp_ratio'] is None
  assert config['evaluation']['templates'] == ['{}']
  assert {path.name for path in workdir.iterdir()} == {'config.json', '.lock'}


def test_the_same_config_is_welcome_again(tmp_path):
  with saved_config.claim_workdir(at(tmp_path), tiny_config()):
    pass
  saved_config.check_saved_config(at(tmp_path), tiny_config())


def refused(place, config):
  with (
    pytest.raises(UsageError, match='no such model'),
    saved_config.claim_workdir(place, config),
  ):
    raise UsageError('no such model')


def test_a_call_that_was_wrong_leaves_the_directory_to_the_next(tmp_path):
  wrong = tiny_config()
  wrong.initialize_from = 'nowhere'
  refused(at(tmp_path), wrong)
  saved_config.check_saved_config(at(tmp_path), tiny_config())
  with saved_config.claim_workdir(at(tmp_path), tiny_config()):
    pass
  before = (tmp_path / 'config.json').read_bytes()
  free = tiny_config()
  free.checkpoint.keep = 7
  refused(at(tmp_path), free)
  assert (tmp_path / 'config.json').read_bytes() == before


@pytest.mark.parametrize('is_new', [True, False])
def test_the_config_of_a_checkpoint_stays(tmp_path, is_new):
  checkpoints = tmp_path / 'checkpoints'
  if not is_new:
    (checkpoints / '4').mkdir(parents=True)
    with saved_config.claim_workdir(at(tmp_path), tiny_config()):
      pass
  longer = tiny_config()
  longer.total_steps = 99
  with (
    pytest.raises(UsageError, match='late'),
    saved_config.claim_workdir(at(tmp_path), longer),
  ):
    (checkpoints / '8').mkdir(parents=True)
    raise UsageError('late')
  saved = saved_config.read_saved_config(at(tmp_path))
  assert saved['total_steps'] == 99


@pytest.mark.parametrize(
  'field, value, message',
  [
    ('seed', 3, 'seed=3 (the run has 0)'),
    ('optimizer.b2', 0.9, 'optimizer.b2=0.9 (the run has 0.98)'),
    ('model.image.width', 64, 'model.image.width=64 (the run has 32)'),
    ('total_steps', 9, 'total_steps=9 (the run has 12). total_steps can be'),
    ('data.mean', (0.5, 0.5, 0.5), 'data.mean=[0.5, 0.5, 0.5] (the run has [0'),
    ('initialize_text_positions', 'interpolate', "(the run has 'append')"),
  ],
)
def test_a_field_that_changes_the_numbers_is_refused(
  tmp_path, field, value, message
):
  with saved_config.claim_workdir(at(tmp_path), tiny_config()):
    pass
  config = tiny_config()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UsageError, match=re.escape(message)):
    saved_config.check_saved_config(at(tmp_path), config)


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
  with saved_config.claim_workdir(at(tmp_path), tiny_config()):
    pass
  config = tiny_config()
  config.update_from_flattened_dict({field: value})
  saved_config.check_saved_config(at(tmp_path), config)


def test_more_steps_are_welcome(tmp_path):
  with saved_config.claim_workdir(at(tmp_path), tiny_config()):
    pass
  config = tiny_config()
  assert saved_config.check_saved_config(at(tmp_path), config) is None
  config.total_steps = 99
  assert saved_config.check_saved_config(at(tmp_path), config) == 12
  config.seed = 1
  with pytest.raises(UsageError, match=r'config: seed=1 \(the run has 0\)\. U'):
    saved_config.check_saved_config(at(tmp_path), config)


def test_a_run_that_left_its_shapes_to_a_model_goes_on(tmp_path):
  """As config.json was before these were written out."""
  old = tiny_config()
  old.initialize_from = 'elsewhere'
  with saved_config.claim_workdir(at(tmp_path), old):
    pass
  config = tiny_config()
  config.initialize_from = 'elsewhere'
  config.model.image.update(activation='quick_gelu', norm_eps=1e-5)
  saved_config.check_saved_config(at(tmp_path), config)
  config.model.image.width = 64
  with pytest.raises(UsageError, match=r'width=64 \(the run has 32\)'):
    saved_config.check_saved_config(at(tmp_path), config)


def older_run(workdir, changes, removed):
  """config.json as it was before there were the fields `removed`."""
  config = tiny_config()
  config.update_from_flattened_dict(changes)
  fields = saved_config.config_to_json(config)
  for name in removed:
    *groups, last = name.split('.')
    group = fields
    for key in groups:
      group = group[key]
    del group[last]
  (workdir / 'config.json').write_text(json.dumps(fields))
  return config


def test_fields_that_an_older_run_had_not_do_not_stop_it(tmp_path):
  new = [
    *('class_token', 'patch_bias', 'norm_after_pooling', 'norm_eps'),
    *('projection', 'layers'),
  ]
  removed = [f'model.image.{name}' for name in new]
  removed += ['model.text.pooling', 'model.initial_logit_bias']
  config = older_run(tmp_path, {'model.image.pooling': 'average'}, removed)
  saved_config.check_saved_config(at(tmp_path), config)
  config.model.image.class_token = False  # what 'average' meant, and means
  saved_config.check_saved_config(at(tmp_path), config)
  config.model.image.class_token = True
  with pytest.raises(UsageError, match=r'class_token=True .the run has False'):
    saved_config.check_saved_config(at(tmp_path), config)
  config.model.image.update(class_token=False, norm_eps=1e-6)
  with pytest.raises(UsageError, match=r'norm_eps=1e-06 .the run has None'):
    saved_config.check_saved_config(at(tmp_path), config)


def test_what_an_older_run_did_without_a_field_is_said(tmp_path):
  config = older_run(tmp_path, {}, ['data.background', 'data.exif'])
  message = "data.background='white' (the run has ''); data.exif=True (the run"
  with pytest.raises(UsageError, match=re.escape(message)):
    saved_config.check_saved_config(at(tmp_path), config)
  config.data.update(background='', exif=False)
  saved_config.check_saved_config(at(tmp_path), config)


@pytest.mark.parametrize(
  ('removed', 'saved', 'decode'),
  [
    (['data.decode'], {}, 'exact'),  # a run of before there was a choice
    ([], {'data.decode': 'exact'}, 'exact'),
    ([], {}, 'fast'),
  ],
)
def test_a_resumed_run_decodes_as_it_did(tmp_path, removed, saved, decode):
  older_run(tmp_path, saved, removed)
  left_open = tests.tiny.tiny_config()
  config = complete_config(left_open, at(tmp_path)).config
  assert left_open.data.decode is None
  assert config.data.decode == decode
  saved_config.check_saved_config(at(tmp_path), config)
  left_open.data.decode = other = {'fast': 'exact', 'exact': 'fast'}[decode]
  config = complete_config(left_open, at(tmp_path)).config
  message = f"data.decode='{other}' (the run has '{decode}')"
  with pytest.raises(UsageError, match=re.escape(message)):
    saved_config.check_saved_config(at(tmp_path), config)


def test_a_new_run_decodes_fast_and_an_unknown_way_is_refused(tmp_path):
  config = complete_config(tests.tiny.tiny_config(), at(tmp_path)).config
  assert config.data.decode == 'fast'
  assert complete_config(tests.tiny.tiny_config()).config.data.decode == 'fast'
  config.data.decode = 'quick'
  with pytest.raises(UsageError, match='choose one of fast, exact'):
    check_config(config)


def test_a_damaged_config_is_said(tmp_path):
  (tmp_path / 'config.json').write_text('{"seed": ')
  with pytest.raises(FailureError, match=r'config.json is not JSON'):
    saved_config.check_saved_config(at(tmp_path), tiny_config())


def test_two_runs_in_one_workdir_are_refused(tmp_path):
  with (
    saved_config.claim_workdir(at(tmp_path), tiny_config()),
    pytest.raises(UsageError, match='another process trains in'),
    saved_config.claim_workdir(at(tmp_path), tiny_config()),
  ):
    pass
  with saved_config.claim_workdir(at(tmp_path), tiny_config()):
    pass


@pytest.mark.parametrize('field', ['data.train', 'evaluation.data'])
@pytest.mark.parametrize('spec', ['folder:{}', '{}/', 'csv:x::{}'])
def test_the_folder_of_the_data_is_no_workdir(tmp_path, field, spec):
  config = tiny_config()
  section, name = field.split('.')
  if section == 'evaluation':
    spec = spec.rpartition('::')[2]
  config[section][name] = spec.format(tmp_path)
  with pytest.raises(UsageError, match='is the folder of the data'):
    saved_config.check_saved_config(Workdir(str(tmp_path), tmp_path), config)
  inside = tmp_path / 'runs' / 'mine'
  assert (
    saved_config.check_saved_config(Workdir(str(inside), inside), config)
    is None
  )


@pytest.mark.parametrize('text', ['[]', '{"total_steps": "12"}', '[' * 10**5])
def test_a_config_of_another_form_is_refused(tmp_path, text):
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(FailureError, match=r'config\.json.*restore it or use'):
    saved_config.read_saved_config(Workdir(tmp_path, tmp_path))


def test_pipes_in_a_run_are_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / 'config.json')
  with pytest.raises(FailureError, match='a pipe or a device'):
    saved_config.read_saved_config(Workdir(tmp_path, tmp_path))
