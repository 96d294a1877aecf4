"""`clip-jax eval` as it is typed."""

import json
import os
import re
import shutil

import pytest

from clip_jax.commands.eval import detail_lines
from clip_jax.data.sources import open_source
from clip_jax.evaluation import EVALUATORS, Evaluation, Options, find_evaluator
from clip_jax.evaluation.dataset import dataset_of
from clip_jax.inference.loading import load


@pytest.mark.parametrize('task', ['zero_shot', 'prompt_gain', 'retrieval'])
def test_json_has_the_evaluators_metrics(clip_jax, workdir, photos, task):
  spec = f'folder:{photos}'
  result = clip_jax(
    'eval', f'--model={workdir}', f'--task={task}', f'--data={spec}', '--json'
  )
  expected = find_evaluator(task)(
    load(workdir), dataset_of(open_source(spec)), Options()
  )
  assert result.json == {
    'task': task,
    'data': spec,
    'model': str(workdir),
    'step': 7,
    'metrics': pytest.approx(expected.metrics, abs=1e-5),
    'chance': expected.chance,
    'corrupt': {},
  }
  assert result.json['chance']


def test_help_has_a_line_for_every_task(clip_jax):
  shown = clip_jax('eval', '--help').out.split('examples:')[0]
  assert re.findall(r'^  (\w+)  +\w', shown, re.M) == list(EVALUATORS)


def test_out_keeps_records_and_tables(clip_jax, workdir, photos, tmp_path):
  out = tmp_path / 'found.json'
  call = ['eval', f'--model={workdir}', '--task=zero_shot', '--json',
          f'--data=folder:{photos}', f'--out={out}']  # fmt: skip
  printed = clip_jax(*call).json
  kept = json.loads(out.read_text())
  assert kept.items() > printed.items()
  assert len(kept['records']) == 5
  assert {row['class'] for row in kept['tables']['per_class']} == {
    'cat face', 'red square'
  }  # fmt: skip
  assert [path.name for path in tmp_path.iterdir()] == ['found.json']


def test_names_that_are_not_utf8_are_kept(clip_jax, workdir, photos, tmp_path):
  name = os.fsdecode(b'caf\xe9')
  shutil.copytree(photos, tmp_path / name)
  (tmp_path / name / 'cat_face' / '0.png').write_bytes(b'damaged')
  out = tmp_path / 'found.json'
  call = ['eval', f'--model={workdir}', '--task=zero_shot', f'--out={out}',
          f'--data=folder:{tmp_path}/{name}', '--max_corrupt=1']  # fmt: skip
  result = clip_jax(*call)
  assert result.code == 0, result.err
  assert f'zero_shot on folder:{tmp_path}/caf\\udce9, ' in result.out
  assert json.loads(out.read_text())['data'] == f'folder:{tmp_path}/{name}'
  assert (
    clip_jax(*call, '--json').json.items()
    <= json.loads(out.read_text()).items()
  )


def test_numbers_are_printed_although_they_cannot_be_kept(
  clip_jax, workdir, photos
):
  call = ['eval', f'--model={workdir}', '--task=zero_shot']
  data = f'--data=folder:{photos}'
  result = clip_jax(*call, data, '--out=/proc/found.json')
  assert result.code == 1
  assert '/proc/found.json could not be written' in result.err
  assert '  top1 ' in result.out


def test_a_cache_gives_the_same_numbers(clip_jax, workdir, photos, tmp_path):
  call = ['eval', f'--model={workdir}', '--json', f'--data=folder:{photos}']
  cached = [*call, f'--cache={tmp_path / "features"}']
  for task in ('zero_shot', 'retrieval'):
    fresh = clip_jax(*call, f'--task={task}').json
    assert clip_jax(*cached, f'--task={task}').json == fresh
  entries = [path.name for path in (tmp_path / 'features' / 'images').iterdir()]
  assert len(entries) == 1  # for both


def test_names_of_a_file_are_used(clip_jax, workdir, photos, tmp_path):
  names = tmp_path / 'names.txt'
  names.write_text('big cat face|small cat face\ngreen circle\n')
  out = tmp_path / 'found.json'
  clip_jax(
    'eval', f'--model={workdir}', '--task=zero_shot', f'--out={out}',
    f'--data=folder:{photos}', f'--class_names={names}',
  )  # fmt: skip
  labels = [row['label'] for row in json.loads(out.read_text())['records']]
  assert labels == ['big cat face'] * 2 + ['green circle'] * 3


def test_what_was_left_out_is_told_in_a_line(clip_jax, workdir, photos):
  result = clip_jax(
    'eval', f'--model={workdir}', '--task=few_shot', '--shots=1,9', '--C=1',
    f'--data=folder:{photos}', f'--train=folder:{photos}',
  )  # fmt: skip
  assert result.code == 0, result.err
  lines = result.err.splitlines()
  assert 'note: no class has 9 examples: the largest has 3.' in lines
  assert f'warning: --train=folder:{photos} is the data that is' in lines[0]


def test_classes_with_the_same_names_are_told_in_a_line(
  clip_jax, workdir, photos, tmp_path
):
  names = tmp_path / 'names.txt'
  call = ['eval', f'--model={workdir}', '--task=zero_shot',
          f'--data=folder:{photos}', f'--class_names={names}']  # fmt: skip
  names.write_text('cat | kitten\ncat\n')
  assert clip_jax(*call).err == ''
  names.write_text('kitten | cat\ncat|kitten\n')
  result = clip_jax(*call)
  assert result.code == 0
  assert result.err == (
    f"warning: data 'folder:{photos}': 2 of 2 classes cannot be told apart "
    'from others: kitten = cat.\n'
  )


def test_a_training_split_is_named(clip_jax, workdir, photos):
  result = clip_jax(
    'eval', f'--model={workdir}', '--task=few_shot', '--shots=1', '--seeds=2',
    f'--data=folder:{photos}', f'--train=folder:{photos}', '--C=1',
    '--json',
  )  # fmt: skip
  assert result.code == 0, result.err
  assert {'zero_shot', '1_shot'} <= result.json['metrics'].keys()


def test_the_table_is_listed(clip_jax):
  rows = clip_jax('eval', '--list', '--json').json
  assert 'cifar10' in [row['name'] for row in rows]


def test_prints_percentages_and_counts(clip_jax, workdir, photos):
  result = clip_jax(
    'eval', f'--model={workdir}', '--task=zero_shot',
    f'--data=folder:{photos}', '--templates=a {}', '--batch_size=2',
  )  # fmt: skip
  title, *rows = result.out.partition('taken for')[0].splitlines()
  assert title == f'zero_shot on folder:{photos}, {workdir} at step 7'
  shown = dict(row.split(maxsplit=1) for row in rows)
  assert 'top5' not in shown  # there are two classes
  assert re.fullmatch(
    r'\d+\.\d+ %  \[\d+\.\d+, \d+\.\d+\]  \(chance 50 %\)', shown['top1']
  )
  assert 'top1_low' not in shown
  assert shown['examples'] == '5'


def test_confusions_and_rates_of_groups_are_printed_as_help_says(
  clip_jax, workdir, photos, tmp_path
):
  call = ['eval', f'--model={workdir}', f'--data=folder:{photos}']
  shown = clip_jax(*call, '--task=zero_shot').out
  wrong = re.findall(r'^  (.+) taken for (.+): (\d+) times?$', shown, re.M)
  assert wrong
  names = {'cat face', 'red square'}
  assert all({right, given} == names for right, given, _ in wrong)
  designs = tmp_path / 'designs.json'
  kinds = {'group': ['{groups}'], 'other': ['green circle']}
  designs.write_text(json.dumps({'own': {'group': ['{groups}']}, 'two': kinds}))
  shown = clip_jax(*call, '--task=bias', f'--designs={designs}').out
  assert 'own, of the images' not in shown  # all are of one kind
  assert 'two, of the images of each group:' in shown
  assert re.search(
    r'^  cat face: group \d+\.\d %, other \d+\.\d %$', shown, re.M
  )


def test_prompts_that_are_truncated_are_told_in_a_line(
  clip_jax, workdir, photos
):
  call = ['eval', f'--model={workdir}', '--task=zero_shot', '--json',
          f'--data=folder:{photos}']  # fmt: skip
  assert clip_jax(*call, '--templates=a {}').err == ''
  words = 'big red square ' * 16
  result = clip_jax(*call, f'--templates={words}{{}}')
  assert result.code == 0
  assert result.err == (
    f"warning: data 'folder:{photos}': 2 of 2 prompts are longer than the 16 "
    'tokens that the model reads, and were truncated: 2 of 2 classes cannot be '
    'told apart from others: cat face = red square.\n'
  )
  assert result.json['metrics']['examples'] == 5


def test_unreadable_images_are_counted(clip_jax, workdir, photos, tmp_path):
  rows = [f'{path},a square' for path in photos.rglob('*.png')]
  (tmp_path / 'junk.png').write_text('junk')
  table = tmp_path / 'pairs.csv'
  table.write_text('\n'.join(['image,caption', *rows, 'junk.png,nothing']))
  call = ['eval', f'--model={workdir}', '--task=retrieval', '--json',
          f'--data=csv:{table}']  # fmt: skip
  result = clip_jax(*call)
  assert result.code == 0
  assert result.json['metrics']['examples'] == 5
  assert result.json['corrupt'] == {
    'junk.png': 'not an image in a known format'
  }
  assert 'left out junk.png' in result.err
  result = clip_jax(*call, '--max_corrupt=0')
  assert result.code == 1
  assert 'error:' in result.err
  assert 'junk.png' in result.err


def test_wrong_calls_are_one_line(refused, workdir, photos, tmp_path):
  model, data = f'--model={workdir}', f'--data=folder:{photos}'
  task = '--task=zero_shot'
  refused('no --model', 'eval', task, data)
  refused('no --task', 'eval', model, data)
  refused('no --data', 'eval', model, task)
  refused(
    "no task 'nosuch': choose one of zero_shot, ",
    'eval', model, '--task=nosuch', data,
  )  # fmt: skip
  refused('no model in', 'eval', f'--model={tmp_path / "none"}', task, data)
  refused("data 'nosuch:x'", 'eval', model, task, '--data=nosuch:x')
  refused('no folder', 'eval', model, task, f'--data=folder:{tmp_path}/none')
  refused('no slot', 'eval', model, task, data, '--templates=photo')
  refused('flags only', 'eval', model, task, data, 'word')
  refused("dtype='float8'", 'eval', model, task, data, '--dtype=float8')
  refused("no data set 'cifr10': the nearest is 'cifar10'",
          'eval', model, task, '--data=cifr10')  # fmt: skip
  refused('the nearest is zero_shot', 'eval', model, data, '--task=zeroshot')
  refused('none', 'eval', model, task, f'--data=folder:{photos}#none')
  refused('use numbers', 'eval', model, task, data, '--shots=1,two')
  refused('ends in .json', 'eval', model, task, data, f'--out={tmp_path}')
  (tmp_path / 'file').touch()
  refused(
    'file is a file', 'eval', model, task, data, f'--cache={tmp_path}/file'
  )
  refused('--C=-1.0', 'eval', model, task, data, '--C=-1')
  refused('--C=nan', 'eval', model, task, data, '--C=nan')
  refused('--seed=-1', 'eval', model, task, data, '--seed=-1')
  refused('--tasks is of --suite', 'eval', model, task, data, '--tasks=bias')
  refused('b.csv', 'eval', model, task, data, f'--baselines={tmp_path}/b.csv')
  refused('no training split', 'eval', model, data, '--task=linear_probe')
  refused('batch_size=0', 'eval', model, task, data, '--batch_size=0')
  refused(
    'has no label names',
    'eval', model, task, f'--data=folder:{photos}/cat_face',
  )  # fmt: skip


@pytest.mark.parametrize(
  'lines, message',
  [
    ('cat\n', 'has 1 names, and data'),
    ('cat\nsquare\ncircle\n', 'has 3 names, and data'),
    ('cat\n\nsquare\n', 'line 2 is empty'),
    ('', '--class_names'),
  ],
)
def test_wrong_class_names_are_one_line(
  refused, workdir, photos, tmp_path, lines, message
):
  names = tmp_path / 'names.txt'
  names.write_text(lines)
  refused(
    message, 'eval', f'--model={workdir}', '--task=zero_shot',
    f'--data=folder:{photos}', f'--class_names={names}',
  )  # fmt: skip


def test_labels_out_of_range_are_one_line(refused, workdir, photos, tmp_path):
  rows = [f'{path},{i}' for i, path in enumerate(photos.rglob('*.png'))]
  table = tmp_path / 'labels.csv'
  table.write_text('\n'.join(['image,label', *rows]))
  (tmp_path / 'names.txt').write_text('cat\nsquare\n')
  call = ['eval', f'--model={workdir}', '--task=zero_shot',
          f'--data=csv:{table}']  # fmt: skip
  refused(
    '3 of 5 labels are not 0 to 1, such as 2: a label is the index of a name',
    *call, f'--class_names={tmp_path / "names.txt"}',
  )  # fmt: skip
  refused('name them with --class_names', *call)


def test_a_class_taken_for_another_of_its_name_is_told_so():
  rows = [
    {'right': 'red beans', 'given': 'red beans', 'times': 9},
    {'right': 'red beans', 'given': 'corn', 'times': 1},
  ]
  lines = detail_lines(Evaluation({}, [], tables={'confusions': rows}))
  assert lines[1] == '  red beans taken for another red beans: 9 times'
  assert lines[2] == '  red beans taken for corn: 1 time'
