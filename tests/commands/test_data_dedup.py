"""`clip-jax data dedup` as it is typed, and what search folds."""

import os
import re
import shutil

import pytest
from PIL import Image


@pytest.fixture
def folder(photos, tmp_path):
  """Five images, a copy of one, and one encoded anew; no captions."""
  folder = tmp_path / 'mine'
  folder.mkdir()
  for i, path in enumerate(sorted(photos.rglob('*.png'))):
    shutil.copy(path, folder / f'{i}.png')
  shutil.copy(folder / '1.png', folder / 'copy.png')
  Image.open(folder / '3.png').save(folder / 'anew.bmp')
  return folder


def test_exact_copies_of_a_folder(clip_jax, folder, tmp_path):
  out = tmp_path / 'keep.txt'
  call = ['data', 'dedup', f'folder:{folder}', f'--out={out}']
  result = clip_jax(*call)
  assert result.code == 0, result
  lines = result.out.splitlines()
  assert lines[0] == (
    '7 images: 1 exact copy (with --model=REF, near ones too), in 1 group; '
    '6 to keep'
  )
  assert lines[1:3] == ['  1.png', '    exact   copy.png']
  kept = ['0.png', '1.png', '2.png', '3.png', '4.png', 'anew.bmp']
  assert out.read_text().split() == kept
  result = clip_jax(*call, '--json').json
  assert result['groups'] == [
    {
      'kept': '1.png',
      'copies': [{'id': 'copy.png', 'exact': True, 'similarity': 1.0}],
    }
  ]
  counts = [result[x] for x in ('records', 'kept', 'exact_copies')]
  assert counts == [7, 6, 1]


def test_near_copies_by_a_model_or_of_what_it_wrote(
  clip_jax, workdir, folder, tmp_path
):
  (folder / 'junk.png').write_text('junk')
  by_model = clip_jax(
    'data', 'dedup', f'folder:{folder}', f'--model={workdir}', '--json'
  )
  assert by_model.code == 0, by_model
  groups = by_model.json['groups']
  assert [(g['kept'], [x['id'] for x in g['copies']]) for g in groups] == [
    ('1.png', ['copy.png']),
    ('3.png', ['anew.bmp']),
  ]
  assert [g['copies'][0]['exact'] for g in groups] == [True, False]
  assert list(by_model.json['corrupt']) == ['junk.png']
  page = tmp_path / 'page.html'
  for suffix in ('.npz', '.parquet'):
    index = tmp_path / f'e{suffix}'
    clip_jax('embed', f'--model={workdir}', f'--images=folder:{folder}',
             f'--out={index}')  # fmt: skip
    written = clip_jax('data', 'dedup', index, f'--html={page}', '--json')
    assert written.json['groups'] == groups
  text = page.read_text()
  assert len(re.findall(r'src="data:image', text)) == 4
  assert '2 groups of copies among 7 images' in text
  assert sorted(os.listdir(tmp_path)) == [
    'e.npz', 'e.parquet', 'mine', 'page.html'
  ]  # fmt: skip


def test_a_search_folds_what_is_nearly_the_same(
  clip_jax, workdir, folder, tmp_path
):
  index, page = tmp_path / 'e.npz', tmp_path / 'page.html'
  clip_jax('embed', f'--model={workdir}', f'--images=folder:{folder}',
           f'--out={index}')  # fmt: skip
  call = ['search', f'--model={workdir}', f'--index={index}', 'cat face']
  matches = clip_jax(*call, '--json').json[0]['results']
  assert sorted(x['id'] for x in matches) == [f'{i}.png' for i in range(5)] or [
    len(matches), sum(len(x['copies']) for x in matches)
  ] == [5, 2]  # fmt: skip
  assert [x['rank'] for x in matches] == [1, 2, 3, 4, 5]
  every = {x['id'] for x in matches} | {y for x in matches for y in x['copies']}
  assert every == set(os.listdir(folder))
  # Copies take no places of what is different.
  assert len(clip_jax(*call, '--json', '--top=4').json[0]['results']) == 4
  plain = clip_jax(*call, '--json', '--nofold').json[0]['results']
  assert len(plain) == 7
  result = clip_jax(*call, f'--html={page}')
  assert result.out.count('+1 nearly the same: ') == 2
  assert page.read_text().count('+1 nearly the same') == 2


def test_wrong_calls_are_one_line(refused, workdir, folder, tmp_path):
  spec = f'folder:{folder}'
  refused('data dedup takes one SPEC', 'data', 'dedup')
  refused('data dedup takes one SPEC', 'data', 'dedup', spec, spec)
  refused('use a cosine', 'data', 'dedup', spec, '--threshold=1.5')
  refused('of embeddings: name a --model', 'data', 'dedup', spec,
          '--threshold=0.9')  # fmt: skip
  refused('there is no folder', 'data', 'dedup', spec, '--out=no/keep.txt')
  refused('is a folder', 'data', 'dedup', spec, f'--html={tmp_path}')
  refused('neither an .npz nor', 'data', 'dedup', folder / '0.png')
  refused('no model in', 'data', 'dedup', spec, f'--model={tmp_path}')


def test_ids_of_several_lines_are_not_listed(clip_jax, folder, tmp_path):
  (folder / 'a\nb.png').write_bytes((folder / '0.png').read_bytes() + b'x')
  result = clip_jax(
    'data', 'dedup', f'folder:{folder}', f'--out={tmp_path / "keep.txt"}'
  )
  assert result.code == 1
  assert 'has more than one line: take the ids of --json' in result.err
