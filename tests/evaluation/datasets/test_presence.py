"""Whether a data set is here, without reading it."""

import json
from pathlib import Path

import pytest

from clip_jax.evaluation.datasets.presence import (
  data_root,
  fill_root,
  why_absent,
)
from clip_jax.evaluation.datasets.table import DATASETS
from tests.evaluation.datasets import tiny_tfds

VOC = {
  'image/filename': 'a', 'objects': [], 'labels': [],
  'labels_no_difficult': [],
}  # fmt: skip


@pytest.fixture
def prepared(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Path:
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
  return tmp_path / 'tfds'


def test_the_folder_is_the_users_or_a_default(monkeypatch: pytest.MonkeyPatch):
  monkeypatch.setenv('CLIP_JAX_DATA', '/data')
  assert data_root() == Path('/data')
  monkeypatch.delenv('CLIP_JAX_DATA')
  assert data_root() == Path.home() / 'clip_data'
  assert fill_root('folder:{root}/x#test', Path('/a')) == 'folder:/a/x#test'


def test_a_folder_is_missing_empty_or_there(tmp_path):
  gtsrb = DATASETS['gtsrb']
  assert why_absent(gtsrb, tmp_path) == 'no such folder'
  (tmp_path / 'gtsrb' / 'test').mkdir(parents=True)
  assert why_absent(gtsrb, tmp_path) == 'an empty folder'
  (tmp_path / 'gtsrb' / 'test' / '14').mkdir()
  assert why_absent(gtsrb, tmp_path) is None


def test_a_table_is_missing_or_there(tmp_path):
  fairface = DATASETS['fairface_age']
  assert why_absent(fairface, tmp_path) == 'no such file'
  (tmp_path / 'fairface').mkdir()
  (tmp_path / 'fairface' / 'fairface_label_val.csv').touch()
  assert why_absent(fairface, tmp_path) is None


def test_built_in_data_sets_are_always_present(prepared: Path):
  local = [x for x in DATASETS.values() if x.group == 'local']
  assert {why_absent(facts) for facts in local} == {None}
  assert not prepared.exists()


def test_prepared_tfds_data_are_present_if_readable(prepared: Path):
  mnist = DATASETS['mnist']
  assert why_absent(mnist) == 'not prepared'
  tiny_tfds.write(prepared, 'mnist', {'train': [{'label': '7'}]})
  assert why_absent(mnist) == 'no split test; it has train'
  (info,) = prepared.glob('mnist/*/dataset_info.json')
  said = json.loads(info.read_text())
  info.write_text(json.dumps({**said, 'fileFormat': 'tfrecord'}))
  assert why_absent(mnist) == 'prepared as tfrecord, not as array_record'
  info.write_text('{')
  assert why_absent(mnist) == 'dataset_info.json is damaged'


def test_a_configuration_may_be_named_or_be_the_default(prepared: Path):
  tiny_tfds.write(prepared, 'voc/2012', {'test': [VOC]})
  assert why_absent(DATASETS['voc2007']) == 'not prepared'
  row = {'label': 'River', 'filename': 'a.jpg'}
  tiny_tfds.write(prepared, 'eurosat/rgb', {'train': [row]})
  assert why_absent(DATASETS['eurosat']) is None
