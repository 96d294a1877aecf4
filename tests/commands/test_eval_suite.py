"""`clip-jax eval --suite=paper` as it is typed."""

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image

SPLITS = ('train', 'valid', 'test')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """A folder of data sets with one of the table, of twelve images a split."""
  folder = tmp_path_factory.mktemp('data')
  rng = np.random.default_rng(0)
  for split in SPLITS:
    for label, level in (('negative', 40), ('positive', 200)):
      place = folder / 'rendered_sst2' / split / label
      place.mkdir(parents=True)
      for i in range(6):
        pixels = rng.integers(0, 50, (18, 20, 3), dtype=np.uint8) + level
        Image.fromarray(pixels.astype(np.uint8)).save(place / f'{i}.png')
  return folder


@pytest.fixture
def call(clip_jax, workdir, root, tmp_path):
  def suite(*words):
    return clip_jax(
      'eval', f'--model={workdir}', '--suite=paper', f'--out={tmp_path}/out',
      f'--root={root}', '--datasets=rendered_sst2,birdsnap', '--shots=1,2',
      *words,
    )  # fmt: skip

  return suite


def test_writes_its_files_and_goes_on_from_them(call, tmp_path):
  first = call('--json')
  assert first.code == 0, first.err
  out = tmp_path / 'out'
  stored = json.loads((out / 'results.json').read_text())
  assert first.json == stored
  tasks = [result['task'] for result in stored['results']]
  assert tasks == ['zero_shot', 'prompt_gain', 'linear_probe', 'few_shot']
  assert [x['dataset'] for x in stored['absent']] == ['birdsnap']
  assert '--suite=paper' in stored['command']
  assert '--json' not in stored['command']
  with open(out / 'results.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert {row['task'] for row in rows} == set(tasks)
  assert '<svg' in (out / 'report.html').read_text()
  assert re.findall(
    r'^\[4/4\] rendered_sst2 few_shot: .* s\)$', first.err, re.M
  )
  again = call('--json')
  assert again.err.count('(kept)') == 4
  assert again.json['results'] == stored['results']


def test_baselines_that_changed_are_read_anew(call, tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  table = tmp_path / 'baselines.csv'
  rows = 'model,reference_accuracy,shift_accuracy\na,.5,.4\nb,.6,.5\n'
  words = '--tasks=zero_shot', '--baselines=~/baselines.csv'
  table.write_text(f'{rows}c,.7,.6\n')
  assert '(kept)' not in call(*words).err
  assert '(kept)' in call(*words).err
  table.write_text(f'{rows}c,.7,.5\n')
  assert '(kept)' not in call(*words).err


def test_a_failure_is_told_at_the_end_and_the_others_finish(call, tmp_path):
  result = call(
    '--tasks=zero_shot,overlap', f'--overlap_with=folder:{tmp_path}/nosuch'
  )
  assert result.code == 1
  last = result.err.strip().splitlines()[-1]
  assert last.startswith('error: 1 of 2 evaluations failed (rendered_sst2 over')
  assert 'nosuch' in last and '.;' not in last and '.)' not in last
  page = (tmp_path / 'out' / 'report.html').read_text()
  assert 'id="failed"' in page and 'id="summary"' in page


def test_prompts_that_are_truncated_are_told_once_and_on_the_page(
  call, tmp_path
):
  words = 'big red square ' * 16
  options = f'--templates={words}{{}}', '--tasks=zero_shot,few_shot', '--C=1'
  line = "data 'rendered_sst2': 2 of 2 prompts are longer than the 16 tokens"
  for _ in range(2):  # kept results say it, too
    result = call(*options)
    assert result.code == 0, result.err
    assert result.err.count(line) == 1
  page = (tmp_path / 'out' / 'report.html').read_text()
  assert page.count('2 of 2 classes cannot be told apart from') == 1
  stored = json.loads((tmp_path / 'out' / 'results.json').read_text())
  for row in stored['results']:
    (only,) = row['tables']['warnings']
    assert only['warning'].startswith(line)


def test_published_numbers_are_shown_for_a_model_that_is_said_to_be_one(
  call, tmp_path
):
  assert call('--tasks=zero_shot', '--published=ViT-B/32').code == 0
  text = (tmp_path / 'out' / 'results.csv').read_text()
  assert ',0.596,True,table 11' in text


def test_wrong_calls_are_one_line(refused, workdir, tmp_path, root):
  model, out = f'--model={workdir}', f'--out={tmp_path}/out'
  suite = ('eval', model, f'--root={root}')
  refused('no --out', *suite, '--suite=paper')
  refused("suite='all'", *suite, '--suite=all', out)
  suite = (*suite, '--suite=paper', out)
  refused("no data set 'cats'", *suite, '--datasets=cats')
  refused("no task 'nosuch'", *suite, '--tasks=nosuch')
  refused('nothing to evaluate (birdsnap', *suite, '--datasets=birdsnap')
  refused("published='ViT-B/33'", *suite, '--published=ViT-B/33')
  for flag in ('task=bias', 'data=digits', 'train=folder:x', 'cache=here'):
    name = flag.split('=')[0]
    refused(f'--{name} is of --task', *suite, f'--{flag}')
  refused('--C=0', *suite, '--C=0')
  (tmp_path / 'file').touch()
  refused('file is a file', *suite[:-1], f'--out={tmp_path}/file')
  assert not (tmp_path / 'out').exists()


@pytest.fixture
def mixed(clip_jax, workdir, root, tmp_path):
  """A suite of a known data set, labelled own data, and captioned own data."""
  table = tmp_path / 'pairs.csv'
  rows = [
    f'{path},shape number {i} at {path.parent.name}'
    for i, path in enumerate(sorted((root / 'rendered_sst2').rglob('*.png')))
  ]
  table.write_text('\n'.join(['image,title', *rows]))

  def suite(*words, datasets):
    return clip_jax(
      'eval', f'--model={workdir}', '--suite=paper', f'--out={tmp_path}/out',
      f'--root={root}', f'--datasets={datasets}', '--shots=1', '--seeds=1',
      '--C=1', *words,
    )  # fmt: skip

  suite.labelled = f'folder:{root}/rendered_sst2#test'
  suite.captioned = f'csv:{table}'
  return suite


def test_own_data_stand_beside_known_ones(mixed, tmp_path):
  named = f'mine={mixed.labelled},pairs-1={mixed.captioned}'
  result = mixed(
    '--captions=title',
    '--json',
    datasets=f'rendered_sst2,birdsnap,{named}',
  )
  assert result.code == 0, result.err
  assert 'left out birdsnap: no such folder' in result.err
  only = {
    (x['dataset'], x['task']): x['metrics'] for x in result.json['results']
  }
  probed = ('zero_shot', 'prompt_gain', 'linear_probe', 'few_shot')
  assert list(only) == [
    *(('rendered_sst2', task) for task in probed),
    *(('mine', task) for task in probed),
    ('pairs-1', 'retrieval'),
  ]
  for task in ('zero_shot', 'prompt_gain'):
    assert only['mine', task]['examples'] == 12
  assert only['mine', 'linear_probe']['train_examples'] == 12
  assert only['pairs-1', 'retrieval']['texts'] == 36
  page = (tmp_path / 'out' / 'report.html').read_text()
  assert '<td>mine<small>' in page and '<td>pairs-1</td>' in page
  again = mixed('--captions=title', datasets=named)
  assert again.err.count('(kept)') == 5


def test_overlap_is_asked_of_own_labelled_data(mixed):
  result = mixed(
    '--tasks=overlap', f'--overlap_with={mixed.labelled}', '--json',
    datasets=f'mine={mixed.labelled}',
  )  # fmt: skip
  assert result.code == 0, result.err
  (only,) = result.json['results']
  assert only['task'] == 'overlap'


@pytest.mark.parametrize(
  ('datasets', 'message'),
  [
    ('folder:pets', 'give your own data a name, as mine=folder:pets'),
    ('a/b=folder:pets', 'use NAME=SPEC with a NAME of letters'),
    ('=folder:pets', 'use NAME=SPEC'),
    ('mine=', 'use NAME=SPEC'),
    ('digits=folder:pets', 'digits is the name of another data set'),
    ('a=folder:x,a=folder:y', 'a is the name of another data set'),
    ('mine=folder:/nowhere', 'no folder'),
    ('mine=nosuch:x', "data 'nosuch:x'"),
    ('cifr10', "no data set 'cifr10' in the suite"),
  ],
)
def test_wrong_own_data_are_one_line(
  refused, workdir, tmp_path, datasets, message
):
  refused(
    message, 'eval', f'--model={workdir}', '--suite=paper',
    f'--out={tmp_path}', f'--datasets={datasets}',
  )  # fmt: skip


def test_own_data_without_labels_and_captions_are_refused(
  refused, workdir, root, tmp_path
):
  plain = root / 'rendered_sst2' / 'test' / 'negative'
  refused(
    'no label names and no captions', 'eval', f'--model={workdir}',
    '--suite=paper', f'--out={tmp_path}', f'--datasets=mine=folder:{plain}',
  )  # fmt: skip
