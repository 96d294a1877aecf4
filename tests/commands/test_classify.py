"""`clip-jax classify` as it is typed."""

import numpy as np
import pytest

import clip_jax as package

LABELS = 'red square,green circle,cat face'


@pytest.fixture
def picture(pictures):
  return pictures / 'red_square' / '0.png'


def test_prints_labels_by_probability(clip_jax, workdir, picture):
  result = clip_jax(
    'classify', f'--model={workdir}', f'--labels={LABELS}', picture
  )
  assert result.code == 0, result
  path, *rows = result.out.splitlines()
  assert path == str(picture)
  percents = [float(row.split('%')[0]) for row in rows]
  assert len(rows) == 3
  assert percents == sorted(percents, reverse=True)
  assert sum(percents) == pytest.approx(100, abs=0.2)
  assert {row.split('%')[1].rstrip(' █').strip() for row in rows} == set(
    LABELS.split(',')
  )


def test_top_limits_what_is_shown(clip_jax, workdir, picture):
  result = clip_jax(
    'classify', f'--model={workdir}', f'--labels={LABELS}', '--top=1', picture
  )
  assert len(result.out.splitlines()) == 2


def test_json_has_each_label_of_each_image(clip_jax, workdir, pictures):
  paths = sorted(pictures.rglob('*.png'))
  result = clip_jax(
    'classify', f'--model={workdir}', f'--labels={LABELS}', '--json', *paths
  )
  assert [item['image'] for item in result.json] == [str(p) for p in paths]
  labels = LABELS.split(',')
  assert list(result.json[0]['labels']) == labels
  expected = package.load(workdir).classify(paths, labels)
  actual = [[item['labels'][name] for name in labels] for item in result.json]
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_labels_and_templates_come_from_files_too(
  clip_jax, workdir, picture, tmp_path
):
  names = tmp_path / 'names.txt'
  names.write_bytes('\ufeffred square\r\n\ncat, face\r\n'.encode())
  prompts = tmp_path / 'prompts.txt'
  prompts.write_text('big {}\nsmall {}\n')
  result = clip_jax(
    'classify', f'--model={workdir}', f'--labels=@{names}', '--json',
    f'--templates=@{prompts}', '--templates={}, it is', picture,
  )  # fmt: skip
  expected = package.load(workdir).classify(
    picture, ['red square', 'cat, face'], ['big {}', 'small {}', '{}, it is']
  )
  actual = list(result.json[0]['labels'].values())
  np.testing.assert_allclose([actual], expected, rtol=1e-5)


def test_wrong_calls_are_one_line(refused, workdir, picture, tmp_path):
  model, labels = f'--model={workdir}', f'--labels={LABELS}'
  refused('no --model', 'classify', labels, picture)
  refused('no --labels', 'classify', model, picture)
  refused('no labels', 'classify', model, '--labels=', picture)
  refused('label 2 of 3 is empty', 'classify', model, '--labels=a,,b', picture)
  refused("label 'a' is there 2", 'classify', model, '--labels=a,a', picture)
  refused('no images', 'classify', model, labels)
  refused('no file', 'classify', model, labels, tmp_path / 'none.png')
  refused('is a folder', 'classify', model, labels, tmp_path)
  refused('no slot', 'classify', model, labels, '--templates=a photo', picture)
  refused('no model in', 'classify', f'--model={tmp_path}', labels, picture)
  refused('--top=0', 'classify', model, labels, '--top=0', picture)
  refused('none.txt: no such', 'classify', model, '--labels=@none.txt', picture)


def test_a_names_file_that_is_not_utf8_names_the_line(
  refused, workdir, picture, tmp_path
):
  names = tmp_path / 'names.txt'
  names.write_bytes(b'cat\nna\xefve\n')
  refused(
    'names.txt, line 2: not UTF-8 (byte 0xef)',
    'classify', f'--model={workdir}', f'--labels=@{names}', picture,
  )  # fmt: skip


def test_a_junk_image_is_one_line(clip_jax, workdir, tmp_path):
  junk = tmp_path / 'a.png'
  junk.write_text('junk')
  result = clip_jax('classify', f'--model={workdir}', '--labels=a,b', junk)
  assert result.code == 1
  assert result.out == ''
  assert f'error: {junk}: not an image' in result.err
