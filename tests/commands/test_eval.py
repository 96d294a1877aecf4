"""`clip-jax eval` as it is typed."""

import pytest

from clip_jax.data.sources import open_source
from clip_jax.evaluation import EVALUATORS, Options, find_evaluator
from clip_jax.evaluation.dataset import of_source
from clip_jax.inference.loading import load


@pytest.mark.parametrize('task', list(EVALUATORS))
def test_json_has_the_evaluators_metrics(clip_jax, workdir, pictures, task):
  spec = f'folder:{pictures}'
  result = clip_jax(
    'eval', f'--model={workdir}', f'--task={task}', f'--data={spec}', '--json'
  )
  expected = find_evaluator(task)(
    load(workdir), of_source(open_source(spec)), Options()
  )
  assert result.json == {
    'task': task,
    'data': spec,
    'model': str(workdir),
    'step': 7,
    'metrics': expected.metrics,
    'corrupt': {},
  }


def test_prints_percentages_and_counts(clip_jax, workdir, pictures):
  result = clip_jax(
    'eval', f'--model={workdir}', '--task=zero_shot',
    f'--data=folder:{pictures}', '--templates=a {}', '--batch_size=2',
  )  # fmt: skip
  title, *rows = result.out.splitlines()
  assert title == f'zero_shot on folder:{pictures}, {workdir} at step 7'
  shown = dict(row.split(maxsplit=1) for row in rows)
  assert shown['top5'] == '100.00 %'  # there are two classes
  assert shown['examples'] == '5'


def test_unreadable_pictures_are_counted(clip_jax, workdir, pictures, tmp_path):
  rows = [f'{path},a square' for path in pictures.rglob('*.png')]
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


def test_wrong_calls_are_one_line(refused, workdir, pictures, tmp_path):
  model, data = f'--model={workdir}', f'--data=folder:{pictures}'
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
  refused('batch_size=0', 'eval', model, task, data, '--batch_size=0')
  refused(
    'has no label names',
    'eval', model, task, f'--data=folder:{pictures}/cat_face',
  )  # fmt: skip
