"""`clip-jax embed` as it is typed."""

import os
import sys

import numpy as np
import pyarrow.parquet
import pytest

from clip_jax.inference.loading import load

TEXTS = ['red square', 'cat face', 'Größe']


@pytest.fixture
def texts(tmp_path):
  path = tmp_path / 'texts.txt'
  path.write_text('red square\n\ncat face\nGröße\n', encoding='utf-8')
  return path


def test_images_with_their_ids(clip_jax, workdir, pictures, tmp_path):
  out = tmp_path / 'e.npz'
  result = clip_jax(
    'embed', f'--model={workdir}', f'--images=folder:{pictures}', f'--out={out}'
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
  expected = load(workdir).encode_image([pictures / key for key in ids])
  np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_images_and_texts_in_one_parquet_file(
  clip_jax, workdir, pictures, texts, tmp_path
):
  out = tmp_path / 'e.parquet'
  result = clip_jax(
    'embed', f'--model={workdir}', f'--images=folder:{pictures}',
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


def test_texts_that_are_cut_are_counted(clip_jax, workdir, tmp_path):
  path = tmp_path / 'texts.txt'
  path.write_text('red\n' + 'big red square ' * 20)
  result = clip_jax(
    'embed', f'--model={workdir}', f'--texts={path}',
    f'--out={tmp_path / "e.npz"}',
  )  # fmt: skip
  assert '1 of 2 texts were cut to 16 tokens' in result.err


def test_unreadable_pictures_are_left_out_and_named(
  clip_jax, workdir, pictures, tmp_path
):
  folder = tmp_path / 'mixed'
  folder.mkdir()
  (folder / 'b.png').write_bytes((pictures / 'cat_face' / '0.png').read_bytes())
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
  assert 'no readable picture' in result.err
  assert np.load(out)['ids'].tolist() == ['b.png']  # the old file stays whole


def test_wrong_calls_are_one_line(refused, workdir, pictures, texts, tmp_path):
  model, images = f'--model={workdir}', f'--images=folder:{pictures}'
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
    'clip-jax[parquet]',
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
