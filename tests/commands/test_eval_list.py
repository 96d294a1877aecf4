"""The table of `clip-jax eval --list`."""

import json

import pytest

from clip_jax.commands.eval_list import print_list
from clip_jax.evaluation.datasets.table import DATASETS


@pytest.fixture(autouse=True)
def prepared(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))


def test_every_data_set_is_there_with_its_numbers(tmp_path, capsys):
  (tmp_path / 'gtsrb' / 'test' / '0').mkdir(parents=True)
  print_list(tmp_path, as_json=False)
  lines = capsys.readouterr().out.splitlines()
  assert max(map(len, lines[:-4])) <= 104 + len(str(tmp_path))
  rows = {line.split()[0]: line for line in lines if line.startswith('  ')}
  assert set(DATASETS) <= set(rows)
  assert rows['cifar10'].split() == [
    'cifar10', 'CIFAR-10', '10', '18', 'accuracy', '50,000', '10,000',
  ]  # fmt: skip
  assert rows['fer2013'].split()[-5:] == [
    '7?', '6', 'accuracy', '32,140?', '3,574?',
  ]  # fmt: skip
  assert rows['emoji'].split()[2:] == ['3,944', '1', 'accuracy', '3,501', '443']
  assert f'    folder:{tmp_path}/gtsrb#test: present' in lines
  assert '    tfds:cifar10#test: not prepared' in lines
  assert lines[-1] == '6 of 45 are present.'
  assert all(line == line.rstrip() for line in lines)


def test_json_is_a_list_of_objects(tmp_path, capsys):
  print_list(tmp_path, as_json=True)
  rows = {row['name']: row for row in json.loads(capsys.readouterr().out)}
  assert list(rows) == list(DATASETS)
  row = rows['ucf101']
  assert (row['classes'], row['templates']) == (101, 48)
  assert (row['train'], row['test']) == (9_537, 1_794)
  assert row['uncertain'] == ['test_size']
  assert row['spec'] == f'folder:{tmp_path}/ucf101#test'
  assert (row['present'], row['missing']) == (False, 'no such folder')
  assert rows['digits']['present'] and rows['digits']['missing'] is None
  assert rows['imagenet_r']['shift_of'] == 'imagenet'


def test_the_folder_is_by_default_the_environments(
  capsys, monkeypatch: pytest.MonkeyPatch
):
  monkeypatch.setenv('CLIP_JAX_DATA', '/data')
  print_list(None, as_json=False)
  assert 'folders are below --root or CLIP_JAX_DATA: /data' in (
    capsys.readouterr().out
  )
