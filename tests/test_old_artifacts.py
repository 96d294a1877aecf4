"""What the code before the redesign wrote still loads, and means the same.

The files, and how they were made: tests/goldens/house/README.md.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import clip_jax
from clip_jax.__main__ import main
from clip_jax.inference.embeddings import open_embeddings

GOLDENS = Path(__file__).parent / 'goldens' / 'house'
IMAGES = [f'images/{number:03}.png' for number in range(8)]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  """A copy of the goldens, as the working directory."""
  folder = tmp_path / 'house'
  shutil.copytree(GOLDENS, folder)
  monkeypatch.chdir(folder)
  return folder


@pytest.fixture(scope='module')
def features():
  with np.load(GOLDENS / 'features.npz') as file:
    return dict(file)


def texts():
  return Path('texts.txt').read_text().splitlines()


@pytest.mark.parametrize('name', ['run', 'run/checkpoints/4', 'exported'])
def test_models_give_the_same_features(name, features):
  model = clip_jax.load(name)
  images, rows = model.encode_image(IMAGES), model.encode_text(texts())
  np.testing.assert_allclose(images, features['images'], atol=1e-5)
  np.testing.assert_allclose(rows, features['texts'], atol=1e-5)
  scale = pytest.approx(features['logit_scale'], rel=1e-6)
  assert model.logit_scale == scale


@pytest.mark.parametrize('name', ['rows.npz', 'rows.parquet'])
def test_tables_of_embeddings_are_read(name, features):
  with open_embeddings(name) as table:
    assert table.count_kinds() == {'image': 8, 'text': 3}
    assert table.about['model'] and table.has_digests
    entries = table.entries(range(11))
    assert entries[6].caption == 'picture number 6'
    assert [entries[row].id for row in range(8)] == [
      Path(name).name for name in IMAGES
    ]
    np.testing.assert_array_equal(
      table.vectors(range(11)),
      np.concatenate([features['images'], features['texts']]),
    )


def test_rows_of_a_table_are_made_anew_and_kept_from_then_on(capsys):
  # A table of that version does not say which activation its model had.
  assert embed('rows.npz', '--json') == 0
  said = capsys.readouterr()
  assert 'it does not say what its rows were made of' in said.err
  assert 'kept' not in json.loads(said.out)
  with np.load('rows.npz') as new, np.load(GOLDENS / 'rows.npz') as old:
    assert new.files == old.files
    # What is said of the data has the times of their files in it.
    for name in set(new.files) - {'about', 'embeddings'}:
      np.testing.assert_array_equal(new[name], old[name])
    np.testing.assert_allclose(new['embeddings'], old['embeddings'], atol=1e-5)
  assert embed('rows.npz', '--json') == 0
  assert json.loads(capsys.readouterr().out)['kept'] == 11


def test_half_done_work_goes_on(capsys, features):
  assert embed('half.npz', '--part_rows=4', '--batch_size=4') == 0
  assert 'going on after 7 of 11 records' in capsys.readouterr().err
  with open_embeddings('half.npz') as table:
    np.testing.assert_allclose(
      table.vectors(range(11)),
      np.concatenate([features['images'], features['texts']]),
      atol=1e-5,
    )
  assert not Path('half.parts').exists()


def embed(out, *options):
  return main(
    [
      'embed', '--model=run', '--images=folder:images', '--texts=texts.txt',
      f'--out={out}', *options,
    ]
  )  # fmt: skip


def test_an_index_is_used_as_it_is(capsys):
  about = json.loads(Path('rows.npz.image.usearch.json').read_text())
  modified = about['table']['modified_ns']
  os.utime('rows.npz', ns=(modified, modified))
  code = main(
    [
      'search', '--model=run', '--index=rows.npz', '--approximate',
      '--kind=image', '--json', 'picture number 1',
    ]
  )  # fmt: skip
  said = capsys.readouterr()
  assert code == 0 and 'building' not in said.err
  (new,), (old,) = (
    json.loads(said.out),
    json.loads(Path('search.json').read_text()),
  )
  for row, golden in zip(new['results'], old['results'], strict=True):
    similarity = pytest.approx(golden.pop('similarity'), abs=1e-5)
    assert row.pop('similarity') == similarity
    assert row == golden


@pytest.mark.slow
def test_a_run_goes_on():
  call = [
    sys.executable, '-m', 'clip_jax', 'train', '--config=recipe.py',
    '--workdir=run', '--config.total_steps=6',
  ]  # fmt: skip
  repository = str(Path(__file__).parents[1])
  environment = {**os.environ, 'PYTHONPATH': repository, 'XLA_FLAGS': ''}
  subprocess.run(call, check=True, env=environment)
  lines = Path('run/metrics.jsonl').read_text().splitlines()
  steps = [json.loads(line)['step'] for line in lines]
  assert steps == sorted(steps) and {4, 6} <= set(steps)
  assert Path('run/checkpoints/6').is_dir()
