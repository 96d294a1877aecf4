"""`clip-jax embed` as it is typed."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from clip_jax.inference.embeddings import open_embeddings
from clip_jax.inference.identity import fingerprint
from clip_jax.inference.loading import load
from tests.tiny import write_pairs
from tests.waiting import until

TEXTS = ['red square', 'cat face', 'Größe']


@pytest.fixture
def texts(tmp_path):
  path = tmp_path / 'texts.txt'
  path.write_text('red square\n\ncat face\nGröße\n', encoding='utf-8')
  return path


def test_images_with_their_ids(clip_jax, workdir, photos, tmp_path):
  out = tmp_path / 'e.npz'
  result = clip_jax(
    'embed', f'--model={workdir}', f'--images=folder:{photos}', f'--out={out}'
  )
  assert result.code == 0, result
  assert result.out == f'5 images, 16 dimensions -> {out}\n'
  file = np.load(out)  # without pickles
  ids = ['cat_face/0.png', 'cat_face/1.png'] + [
    f'red_square/{i}.png' for i in range(3)
  ]
  assert file['ids'].tolist() == ids
  assert file['kinds'].tolist() == ['image'] * 5
  assert file['captions'].tolist() == ['cat face'] * 2 + ['red square'] * 3
  rows = file['embeddings']
  assert rows.dtype == np.float32
  np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
  expected = load(workdir).encode_image([photos / key for key in ids])
  np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_images_and_texts_in_one_parquet_file(
  clip_jax, workdir, photos, texts, tmp_path
):
  out = tmp_path / 'e.parquet'
  result = clip_jax(
    'embed', f'--model={workdir}', f'--images=folder:{photos}',
    f'--texts={texts}', f'--out={out}', '--json',
  )  # fmt: skip
  assert result.json == {
    'out': str(out), 'images': 5, 'texts': 3, 'dimensions': 16, 'corrupt': {},
    'truncated': 0,
  }  # fmt: skip
  table = pyarrow.parquet.read_table(out).to_pydict()
  assert table['id'][5:] == ['texts.txt:1', 'texts.txt:3', 'texts.txt:4']
  assert table['kind'] == ['image'] * 5 + ['text'] * 3
  assert table['caption'][5:] == TEXTS
  rows = np.array(table['embedding'], np.float32)
  expected = load(workdir).encode_text(TEXTS)
  np.testing.assert_allclose(rows[5:], expected, atol=1e-6)


def test_texts_that_are_truncated_are_counted(clip_jax, workdir, tmp_path):
  path = tmp_path / 'texts.txt'
  path.write_text('red\n' + 'big red square ' * 20)
  result = clip_jax(
    'embed', f'--model={workdir}', f'--texts={path}',
    f'--out={tmp_path / "e.npz"}',
  )  # fmt: skip
  assert '1 of 2 texts were truncated to 16 tokens' in result.err


def test_unreadable_images_are_left_out_and_named(
  clip_jax, workdir, photos, tmp_path
):
  folder = tmp_path / 'mixed'
  folder.mkdir()
  (folder / 'b.png').write_bytes((photos / 'cat_face' / '0.png').read_bytes())
  (folder / 'a.png').write_text('junk')
  out = tmp_path / 'e.npz'
  call = ['embed', f'--model={workdir}', f'--images=folder:{folder}',
          f'--out={out}']  # fmt: skip
  result = clip_jax(*call, '--max_corrupt=0')
  assert result.code == 1
  assert 'a.png: not an image' in result.err
  assert os.listdir(tmp_path) == ['mixed']
  result = clip_jax(*call)
  assert result.code == 0
  assert 'left out a.png: not an image' in result.err
  assert '1 corrupt' in result.err
  assert np.load(out)['ids'].tolist() == ['b.png']
  (folder / 'b.png').unlink()
  result = clip_jax(*call)
  assert result.code == 1
  assert 'no readable image' in result.err
  assert np.load(out)['ids'].tolist() == ['b.png']  # the old file stays whole


@pytest.mark.parametrize('suffix', ['.npz', '.parquet'])
def test_what_was_added_is_encoded_and_what_is_gone_is_dropped(
  clip_jax, workdir, photos, texts, tmp_path, suffix
):
  folder, out = tmp_path / 'mine', tmp_path / f'e{suffix}'
  shutil.copytree(photos, folder)
  call = ['embed', f'--model={workdir}', f'--images=folder:{folder}',
          f'--texts={texts}', f'--out={out}']  # fmt: skip
  first = clip_jax(*call)
  assert 'kept' not in first.err
  assert 'kept 8, encoded 0 new, 0 changed, dropped 0' in clip_jax(*call).err
  (folder / 'cat_face' / '0.png').unlink()
  red = folder / 'red_square'
  (red / '2.png').write_bytes((photos / 'cat_face' / '0.png').read_bytes())
  Image.new('RGB', (9, 9), 'red').save(red / '0.png')
  Image.new('RGB', (9, 9), 'blue').save(red / 'new.png')
  texts.write_text('blue\nred square\nGröße\n', encoding='utf-8')
  second = clip_jax(*call, '--json')
  # The content of cat_face/0.png goes on under another name.
  assert 'kept 5, encoded 2 new, 1 changed, dropped 1 that' in second.err
  counts = [second.json[x] for x in ('kept', 'new', 'changed', 'dropped')]
  assert counts == [5, 2, 1, 1]
  model = load(workdir)
  with open_embeddings(out) as table:
    every = table.entries(range(table.rows)).values()
    rows = table.vectors(range(table.rows))
  images = [folder / x.id for x in every if x.kind == 'image']
  lines = [x.caption for x in every if x.kind == 'text']
  assert lines == ['blue', 'red square', 'Größe']
  expected = [model.encode_image(images), model.encode_text(lines)]
  np.testing.assert_allclose(rows, np.concatenate(expected), atol=1e-6)


def test_one_long_text_does_not_make_a_large_file(clip_jax, workdir, tmp_path):
  lines = [*(f'red square {i}' for i in range(99)), 'big cat ' * 125_000]
  (tmp_path / 'texts.txt').write_text('\n'.join(lines))
  out = tmp_path / 'e.npz'
  clip_jax('embed', f'--model={workdir}', f'--texts={tmp_path / "texts.txt"}',
           f'--out={out}')  # fmt: skip
  assert out.stat().st_size < 3e6
  with np.load(out, allow_pickle=False) as file:
    assert file['captions'][:99].tolist() == lines[:99]
    assert file['captions'][99] == lines[99].strip()
  result = clip_jax('search', f'--model={workdir}', f'--index={out}',
                   '--text=red square 7', '--top=1')  # fmt: skip
  assert result.out.split()[-3:-1] == ['red', 'square']


def test_the_home_of_what_is_typed(clip_jax, workdir, texts, monkeypatch):
  monkeypatch.setenv('HOME', str(texts.parent))
  result = clip_jax(
    'embed', f'--model={workdir}', '--texts=~/texts.txt', '--out=~/e.npz'
  )
  assert result.code == 0, result
  ids = np.load(texts.parent / 'e.npz')['ids'].tolist()
  assert ids == ['texts.txt:1', 'texts.txt:3', 'texts.txt:4']


def test_wrong_calls_are_one_line(refused, workdir, photos, texts, tmp_path):
  model, images = f'--model={workdir}', f'--images=folder:{photos}'
  out = f'--out={tmp_path / "e.npz"}'
  refused('no --model', 'embed', images, out)
  refused('no --out', 'embed', model, images)
  refused('nothing to embed', 'embed', model, out)
  refused('must end in .npz or', 'embed', model, images, '--out=e.csv')
  refused('no folder', 'embed', model, images, f'--out={tmp_path}/no/e.npz')
  refused('cannot be written', 'embed', model, images, '--out=/proc/e.npz')
  refused('no model in', 'embed', f'--model={tmp_path}', images, out)
  empty = tmp_path / 'empty'
  empty.mkdir()
  refused('no images in', 'embed', model, f'--images=folder:{empty}', out)
  refused('no such file', 'embed', model, '--texts=none.txt', out)
  refused('flags only', 'embed', model, images, out, 'word')
  texts.write_bytes(b'one\ntwo\ncaf\xe9\n')
  refused(
    'texts.txt, line 3: not UTF-8', 'embed', model, f'--texts={texts}', out
  )
  texts.write_bytes(b'\n \n')
  refused('has no text in it', 'embed', model, f'--texts={texts}', out)
  assert not (tmp_path / 'e.npz').exists()


def test_without_pyarrow_the_extra_is_named(
  refused, workdir, texts, tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  refused(
    'pip install ".[parquet]"',
    'embed', f'--model={workdir}', f'--texts={texts}',
    f'--out={tmp_path / "e.parquet"}',
  )  # fmt: skip


def test_a_full_disk_leaves_nothing_behind(
  clip_jax, workdir, texts, tmp_path, monkeypatch
):
  def full(file, **arrays):
    file.write(b'half')
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(np, 'savez', full)
  result = clip_jax(
    'embed', f'--model={workdir}', f'--texts={texts}',
    f'--out={tmp_path / "e.npz"}',
  )  # fmt: skip
  assert result.code == 1
  assert 'no space left on device' in result.err
  assert os.listdir(tmp_path) == ['texts.txt']


@pytest.fixture(scope='module')
def many(tmp_path_factory):
  """A SPEC of 300 small images."""
  return write_pairs(tmp_path_factory.mktemp('many') / 'pairs', count=300)


def started(*argv):
  """A real process of the command line."""
  return subprocess.Popen(
    [sys.executable, '-m', 'clip_jax', 'embed', *map(str, argv)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def parts_of(folder):
  return len(list(folder.glob('*.npz'))) if folder.is_dir() else 0


@pytest.mark.slow
def test_kills_at_random_moments_cost_nothing(workdir, many, tmp_path):
  call = [f'--model={workdir}', f'--images={many}', '--batch_size=4',
          '--part_rows=4']  # fmt: skip
  whole, out = tmp_path / 'whole.npz', tmp_path / 'killed.npz'
  assert started(*call, f'--out={whole}').wait() == 0
  rng = random.Random(0)
  for _ in range(3):
    before = parts_of(tmp_path / 'killed.parts')
    process = started(*call, f'--out={out}')
    enough = before + rng.randrange(2, 15)

    def reached(process=process, enough=enough):
      assert process.poll() is None, process.communicate()
      return parts_of(tmp_path / 'killed.parts') >= enough

    until(reached)
    process.kill()
    assert process.wait() == -signal.SIGKILL
  done = parts_of(tmp_path / 'killed.parts')
  last = started(*call, f'--out={out}')
  assert last.wait() == 0
  assert f'going on after {4 * done} of 300 records' in last.stderr.read()
  assert out.read_bytes() == whole.read_bytes()
  ids = np.load(out)['ids'].tolist()
  assert ids == [f'{i:03}.png' for i in range(300)]
  assert sorted(os.listdir(tmp_path)) == ['killed.npz', 'whole.npz']


@pytest.mark.slow
def test_two_processes_share_the_work(workdir, many, tmp_path):
  call = [f'--model={workdir}', f'--images={many}', '--part_rows=16',
          '--batch_size=16']  # fmt: skip
  whole, out = tmp_path / 'whole.npz', tmp_path / 'shared.npz'
  processes = [
    started(*call, f'--out={out}', f'--shard={i}/2', '--json') for i in (0, 1)
  ]
  printed = [process.communicate()[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0]
  assert any('"images": 300' in text for text in printed)
  assert started(*call, f'--out={whole}').wait() == 0
  assert out.read_bytes() == whole.read_bytes()
  assert sorted(os.listdir(tmp_path)) == ['shared.npz', 'whole.npz']


def test_a_worker_says_what_is_there(clip_jax, workdir, photos, tmp_path):
  call = ['embed', f'--model={workdir}', f'--images=folder:{photos}',
          f'--out={tmp_path / "e.npz"}', '--part_rows=2', '--batch_size=2',
          '--json']  # fmt: skip
  out = str(tmp_path / 'e.npz')
  first = clip_jax(*call, '--shard=1/2').json
  assert first == {'out': out, 'parts': 1, 'planned': 3}
  assert not os.path.exists(out)
  last = clip_jax(*call, '--shard=0/2').json
  assert (last['out'], last['images']) == (out, 5)
  assert os.listdir(tmp_path) == ['e.npz']
  again = clip_jax(*call, '--shard=1/2')  # as a pod that is started again
  assert again.json['images'] == 5
  assert 'is there, joined from all parts' in again.err
  assert os.listdir(tmp_path) == ['e.npz']


DISTRIBUTED = """
import sys
import jax
jax.distributed.initialize('localhost:{port}', 2, {index})
from clip_jax.__main__ import main
sys.exit(main({argv}))
"""


@pytest.mark.slow
def test_processes_of_one_program_have_a_worker_each(workdir, many, tmp_path):
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  out = tmp_path / 'e.npz'
  argv = ['embed', f'--model={workdir}', f'--images={many}', f'--out={out}',
          '--part_rows=16', '--batch_size=16']  # fmt: skip
  processes = [
    subprocess.Popen(
      [
        sys.executable,
        '-c',
        DISTRIBUTED.format(port=port, index=index, argv=argv),
      ],
      stdout=subprocess.PIPE,
      text=True,
    )
    for index in (0, 1)
  ]
  printed = [process.communicate(timeout=100)[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0]
  assert any('300 images, 16 dimensions' in text for text in printed)
  assert np.load(out)['ids'].tolist() == [f'{i:03}.png' for i in range(300)]
  assert os.listdir(tmp_path) == ['e.npz']


def test_another_job_is_refused_in_one_line(
  clip_jax, refused, workdir, photos, texts, tmp_path
):
  out = f'--out={tmp_path / "e.npz"}'
  call = ['embed', f'--model={workdir}', out, '--shard=0/2', '--part_rows=1',
          '--batch_size=1']  # fmt: skip
  clip_jax(*call, f'--images=folder:{photos}')
  refused('--images is , theirs is folder:', *call, f'--texts={texts}')
  refused(
    'the dtype is bfloat16',
    *call, f'--images=folder:{photos}', '--dtype=bfloat16',
  )  # fmt: skip


@pytest.mark.parametrize('shard', ['1', '2/2', '-1/2', 'a/b', '0/0'])
def test_a_wrong_shard_is_one_line(refused, workdir, texts, tmp_path, shard):
  refused(
    'use I/N with I from 0 to N - 1',
    'embed', f'--model={workdir}', f'--texts={texts}',
    f'--out={tmp_path / "e.npz"}', f'--shard={shard}',
  )  # fmt: skip


def test_what_made_the_file_is_in_it(clip_jax, workdir, photos, tmp_path):
  for suffix in ('.npz', '.parquet'):
    out = tmp_path / f'e{suffix}'
    clip_jax(
      'embed', f'--model={workdir}', f'--images=folder:{photos}',
      f'--out={out}',
    )  # fmt: skip
    with open_embeddings(out) as table:
      assert table.about['images'] == f'folder:{photos}'
      assert table.about['step'] == 7
      assert table.about['model'] == fingerprint(load(workdir).params)


def views_of(workdir, data, out, *extra):
  return [
    'embed', f'--model={workdir}', '--config=tests/tiny.py',
    f'--config.data.train={data}', f'--out={out}', *extra,
  ]  # fmt: skip


def test_a_teacher_sees_the_views_of_a_recipe(clip_jax, workdir, tmp_path):
  data = write_pairs(tmp_path / 'pairs', 5)
  (tmp_path / 'pairs/003.png').write_bytes(b'no image')
  out = tmp_path / 'teacher'
  call = views_of(workdir, data, out, '--config.data.views=4')
  result = clip_jax(*call)
  assert result.code == 0, result
  assert result.out == f'5 records, 4 views each, 16 dimensions -> {out}\n'
  assert '003.png' in result.err
  again = clip_jax(*call, '--json')
  assert 'going on after 5 of 5 records' in again.err
  assert again.json == {
    'out': str(out), 'views': 4, 'dimensions': 16, 'shards': 1, 'planned': 1,
    'records': 5, 'corrupt': again.json['corrupt'], 'truncated': 4,
  }  # fmt: skip
  assert list(again.json['corrupt']) == ['003.png']


def test_wrong_calls_with_a_recipe_are_refused(refused, workdir, tmp_path):
  data = write_pairs(tmp_path / 'pairs', 2)
  call = views_of(workdir, data, tmp_path / 'teacher')
  refused('data.views=0: say how many', *call)
  refused('--images and --config', *call, f'--images={data}')
  refused('--captions and --config', *call, '--captions=title')
  missing = tmp_path / 'nowhere/teacher'
  refused(
    f'there is no folder {tmp_path / "nowhere"}',
    *views_of(workdir, data, missing, '--config.data.views=2'),
  )
  refused(
    'no --out: name a folder for the features',
    'embed', f'--model={workdir}', '--config=tests/tiny.py',
  )  # fmt: skip
