"""`clip-jax search` as it is typed."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from clip_jax.commands import search
from clip_jax.inference.loading import load
from clip_jax.inference.search import Match, QueryResult
from tests.inference.tables import unit_rows, write_table


@pytest.fixture(params=['.npz', '.parquet'])
def index(request, clip_jax, workdir, photos, tmp_path):
  """Five images and three texts, embedded."""
  return embed(clip_jax, workdir, photos, tmp_path, request.param)


@pytest.fixture
def npz(clip_jax, workdir, photos, tmp_path):
  return embed(clip_jax, workdir, photos, tmp_path, '.npz')


def embed(clip_jax, workdir, photos, folder, suffix):
  texts = folder / 'texts.txt'
  texts.write_text('red square\ncat face\nbig <b>circle</b>')
  out = folder / f'e{suffix}'
  result = clip_jax(
    'embed', f'--model={workdir}', f'--images=folder:{photos}',
    f'--texts={texts}', f'--out={out}',
  )  # fmt: skip
  assert result.code == 0, result
  return out


@pytest.fixture
def search_json(clip_jax, workdir):
  """Searches, and gives the JSON."""

  def search_json(*argv):
    result = clip_jax('search', f'--model={workdir}', *argv, '--json')
    assert result.code == 0, result
    return result.json

  return search_json


def test_texts_find_images(search_json, index, workdir, photos):
  answers = search_json(f'--index={index}', 'red square', 'cat face')
  assert [answer['query'] for answer in answers] == ['red square', 'cat face']
  model = load(workdir)
  ids = [f'cat_face/{i}.png' for i in range(2)] + [
    f'red_square/{i}.png' for i in range(3)
  ]
  rows = model.encode_image([photos / key for key in ids])
  for answer in answers:
    similarities = rows @ model.encode_text(answer['query'])[0]
    best = np.argsort(-similarities)
    assert [x['id'] for x in answer['results']] == [ids[i] for i in best]
    assert [x['rank'] for x in answer['results']] == [1, 2, 3, 4, 5]
    assert {x['kind'] for x in answer['results']} == {'image'}
    np.testing.assert_allclose(
      [x['similarity'] for x in answer['results']],
      similarities[best],
      atol=1e-5,
    )
    first = answer['results'][0]
    assert first['caption'] == first['id'].split('/')[0].replace('_', ' ')


def test_an_image_finds_itself(search_json, index, photos):
  path = photos / 'red_square' / '1.png'
  for query in (path, f'--image={path}'):
    (answer,) = search_json(f'--index={index}', query, '--top=1')
    assert answer['query'] == str(path)
    assert answer['results'][0]['id'] == 'red_square/1.png'
    assert answer['results'][0]['similarity'] == pytest.approx(1, abs=1e-5)


def test_kinds(search_json, index):
  (answer,) = search_json(f'--index={index}', '--kind=text', 'cat face')
  assert answer['results'][0]['id'] == 'texts.txt:2'
  assert answer['results'][0]['similarity'] == pytest.approx(1, abs=1e-5)
  assert len(answer['results']) == 3
  (answer,) = search_json(f'--index={index}', '--kind=all', 'cat face')
  assert len(answer['results']) == 8


def test_a_table_of_texts_is_searched_without_a_kind(
  clip_jax, search_json, workdir, npz, tmp_path
):
  out = tmp_path / 't.npz'
  clip_jax(
    'embed', f'--model={workdir}', f'--texts={tmp_path / "texts.txt"}',
    f'--out={out}',
  )  # fmt: skip
  (answer,) = search_json(f'--index={out}', 'red square', '--top=1')
  assert answer['results'][0]['caption'] == 'red square'


def test_the_index_finds_the_same(clip_jax, search_json, index, workdir):
  exact = search_json(f'--index={index}', 'red square', 'cat face')
  call = ['search', f'--model={workdir}', f'--index={index}', 'red square',
          'cat face', '--json', '--approximate']  # fmt: skip
  first, second = clip_jax(*call), clip_jax(*call)
  assert 'building' in first.err
  assert 'building' not in second.err
  for result in (first, second):
    for answer, other in zip(result.json, exact, strict=True):
      assert [x['id'] for x in answer['results']] == [
        x['id'] for x in other['results']
      ]


def test_queries_of_a_file(search_json, npz, tmp_path):
  queries = tmp_path / 'queries.txt'
  queries.write_text('cat face\n\na.png\n')
  answers = search_json(
    f'--index={npz}', 'big', f'--queries={queries}', '--text=b'
  )
  assert [x['query'] for x in answers] == ['big', 'b', 'cat face', 'a.png']


def test_what_a_person_reads(clip_jax, npz, workdir):
  result = clip_jax(
    'search', f'--model={workdir}', f'--index={npz}', '--top=2', 'red', 'cat'
  )
  lines = result.out.splitlines()
  assert [lines[0], lines[3]] == ['red', 'cat']
  row = re.compile(r'  (-| )\d\.\d{3}  \w+/\d\.png +(red square|cat face)')
  assert all(row.fullmatch(lines[i]) for i in (1, 2, 4, 5))
  assert result.err == ''


def test_the_page_has_the_images(clip_jax, workdir, photos, npz, tmp_path):
  page = tmp_path / 'found.html'
  result = clip_jax(
    'search', f'--model={workdir}', f'--index={npz}', f'--html={page}',
    '<script>alert(1)</script>', '--kind=all',
    photos / 'cat_face' / '0.png',
  )  # fmt: skip
  assert result.code == 0, result
  text = page.read_text()
  assert '<script' not in text
  assert '&lt;script&gt;alert(1)' in text
  assert '<b>' not in text  # of a caption
  assert 'http' not in text.replace('http-equiv', '')  # nothing from elsewhere
  uris = re.findall(r'src="data:image/\w+;base64,([^"]+)"', text)
  assert len(uris) == 2 * 5 + 1  # search_json twice, and the query
  sizes = {Image.open(io.BytesIO(base64.b64decode(u))).size for u in uris}
  assert sizes == {(20, 18)}
  assert sorted(os.listdir(tmp_path)) == ['e.npz', 'found.html', 'texts.txt']


def test_images_that_have_moved(clip_jax, refused, workdir, photos, tmp_path):
  here, there = tmp_path / 'here', tmp_path / 'there'
  shutil.copytree(photos, here)
  index = embed(clip_jax, workdir, here, tmp_path, '.npz')
  here.rename(there)
  page = tmp_path / 'found.html'
  call = ['search', f'--model={workdir}', f'--index={index}', 'cat',
          f'--html={page}']  # fmt: skip
  refused('say where with --images=SPEC', *call)
  (there / 'cat_face' / '0.png').unlink()
  (there / 'aardvark').mkdir()  # so that no record is at its old place
  for i in range(3):
    Image.new('RGB', (9, 9)).save(there / 'aardvark' / f'{i}.png')
  result = clip_jax(*call, f'--images=folder:{there}')
  assert '1 images are not in folder:' in result.err
  text = page.read_text()
  assert text.count('src="data:') == 4
  assert text.count('no image at hand') == 1


def test_wrong_calls_are_one_line(
  refused, workdir, npz, photos, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  call = ['search', f'--model={workdir}', f'--index={npz}']
  refused('no --model', 'search', f'--index={npz}', 'a')
  refused('no --index', 'search', f'--model={workdir}', 'a')
  refused('nothing to search for', *call)
  refused('a query is empty', *call, ' ')
  refused('--top=0 must be at least 1', *call, '--top=0', 'a')
  refused('no image nosuch.jpg: to search for the words', *call, 'nosuch.jpg')
  refused('--image: no image nosuch', *call, '--image=nosuch')
  refused('no such file', *call, '--queries=nosuch.txt')
  refused('--kind=nosuch', *call, '--kind=nosuch', 'a')
  refused('there is no folder', *call, '--html=no/page.html', 'a')
  refused('no model in', 'search', f'--model={photos}', f'--index={npz}', 'a')
  other = f'--model={workdir}'
  refused('does not exist', 'search', other, '--index=nosuch.npz', 'a')
  (tmp_path / 'junk.npz').write_text('junk')
  refused('neither an .npz nor', 'search', other, '--index=junk.npz', 'a')
  write_table(tmp_path / 'empty.npz', unit_rows(0, 0))
  refused('has no rows', 'search', other, '--index=empty.npz', 'a')
  write_table(tmp_path / 'wide.npz', unit_rows(0, 2, 32))
  refused('makes 16 dimensions', 'search', other, '--index=wide.npz', 'a')
  write_table(tmp_path / 'images.npz', unit_rows(0, 2))
  refused(
    '--kind=text: images.npz has 2 of kind image',
    'search', other, '--index=images.npz', '--kind=text', 'a',
  )  # fmt: skip
  about = {'model': 'x', 'origin': 'runs/cats'}
  write_table(tmp_path / 'other.npz', unit_rows(0, 2), about=about)
  refused(
    'made by another model, runs/cats',
    'search', other, '--index=other.npz', 'a',
  )  # fmt: skip


def test_an_image_that_cannot_be_read_fails(clip_jax, workdir, npz, tmp_path):
  (tmp_path / 'junk.png').write_text('junk')
  result = clip_jax(
    'search', f'--model={workdir}', f'--index={npz}', tmp_path / 'junk.png'
  )
  assert result.code == 1
  assert 'junk.png: not an image' in result.err
  assert len(result.err.splitlines()) == 1


def test_truncated_queries_are_counted(clip_jax, npz, workdir):
  result = clip_jax(
    'search', f'--model={workdir}', f'--index={npz}', 'red square ' * 20, 'cat'
  )
  assert '1 of 2 queries were truncated to 16 tokens' in result.err


def test_a_large_table_is_pointed_to_the_index(
  clip_jax, npz, workdir, monkeypatch
):
  monkeypatch.setattr('clip_jax.commands.search._MANY_ROWS', 4)
  call = ['search', f'--model={workdir}', f'--index={npz}', 'cat']
  assert '5 rows: --approximate would search an index' in clip_jax(*call).err
  result = clip_jax(*call, '--approximate')
  assert '--approximate would' not in result.err


def test_queries_of_the_standard_input(workdir, npz):
  done = subprocess.run(
    [sys.executable, '-m', 'clip_jax', 'search', f'--model={workdir}',
     f'--index={npz}', '--json', '-'],
    input='cat face\nred\n', capture_output=True, text=True, check=True,
  )  # fmt: skip
  answers = json.loads(done.stdout)
  assert [answer['query'] for answer in answers] == ['cat face', 'red']


@pytest.mark.parametrize(
  'name, image_format',
  [('photo', 'JPEG'), ('a.jfif', 'JPEG'), ('red square', 'PNG'),
   ('b.dat', 'GIF'), ('c.heic', 'HEIF'), ('d.txt', 'TIFF')],
)  # fmt: skip
def test_what_names_a_file_is_an_image(
  search_json, npz, tmp_path, monkeypatch, name, image_format
):
  if image_format == 'HEIF':
    pytest.importorskip('pillow_heif').register_heif_opener()
  monkeypatch.chdir(tmp_path)
  noise = Image.effect_noise((20, 18), 90).convert('RGB')
  noise.save(name, image_format)
  word, text, image = search_json(
    f'--index={npz}', name, f'--text={name}', f'--image={name}'
  )
  assert word['results'] == image['results'] != text['results']


def test_the_home_of_a_query(search_json, npz, tmp_path, photos, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  shutil.copy(photos / 'red_square' / '1.png', tmp_path / 'mine')
  queries = tmp_path / 'queries.txt'
  queries.write_text('cat\n')
  answers = search_json(
    '--index=~/e.npz', '~/mine', '--image=~/mine', '--queries=~/queries.txt'
  )
  assert answers[0] == answers[1]
  assert answers[0]['results'][0]['id'] == 'red_square/1.png'
  assert answers[2]['query'] == 'cat'


def test_the_name_of_a_folder_is_a_text(
  search_json, npz, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'cat').mkdir()
  texts = ['cat', 'AC/DC', 'a dog.', 'node.js', '~ 5 apples', 'x' * 300]
  words = search_json(f'--index={npz}', *texts)
  assert words == search_json(f'--index={npz}', *(f'--text={x}' for x in texts))


def test_what_cannot_be_a_query_is_one_line(
  refused, workdir, npz, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  call = ['search', f'--model={workdir}', f'--index={npz}']
  (tmp_path / 'folder').mkdir()
  for word in ('a.HEIC', 'a b.jfif', './cat', '/no/cat', 'folder/cat', '~/c'):
    refused(f'no image {word}: to search for the words', *call, word)
  refused('no image folder/, but a folder', *call, 'folder/')
  refused('--image: folder: a folder, not a file', *call, '--image=folder')
  (tmp_path / 'notes').write_text('red square\n')
  refused("not of an image: to search for the words, use --text='notes'",
          *call, 'notes')  # fmt: skip
  os.mkfifo(tmp_path / 'pipe')
  refused('pipe: a pipe or a device, not a file', *call, 'pipe')
  refused('pipe: a pipe or a device, not a file', *call, '--image=pipe')
  refused('is a pipe or a device', *call[:2], '--index=pipe', 'cat')
  refused('is a URL: save the image', *call, 'https://a.org/cat.png')


@pytest.mark.parametrize('name', ['table', 'e.dat', 'e.zip', 'wrong'])
def test_an_index_is_told_by_its_content(search_json, index, tmp_path, name):
  expected = search_json(f'--index={index}', 'red')
  other = {'.npz': '.parquet', '.parquet': '.npz'}[index.suffix]
  moved = tmp_path / (name if name != 'wrong' else f'w{other}')
  index.rename(moved)
  assert search_json(f'--index={moved}', 'red') == expected


def test_what_a_table_holds_cannot_move_a_terminals_cursor(capsys):
  match = Match(1, 0, 'a\x1b[2J.png', 'image', 'a\x07 \x9b red', 0.5)
  search._print([QueryResult('a cat\r', False, [match])])
  out = capsys.readouterr().out
  assert out.replace('\n', '').isprintable()
  assert '\\x1b[2J.png' in out
