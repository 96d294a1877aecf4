"""`clip-jax classify` as it is typed."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import ExifTags, Image

import clip_jax as package
from clip_jax.tokenizers import sentence_piece
from tests.golden_models import GOLDENS
from tests.tiny_run import CAPTIONS

LABELS = 'red square,green circle,cat face'


@pytest.fixture
def photo(photos):
  return photos / 'red_square' / '0.png'


def test_prints_labels_by_probability(clip_jax, workdir, photo):
  result = clip_jax(
    'classify', f'--model={workdir}', f'--labels={LABELS}', photo
  )
  assert result.code == 0, result
  path, *rows = result.out.splitlines()
  assert path == str(photo)
  percents = [float(row.split('%')[0]) for row in rows]
  assert len(rows) == 3
  assert percents == sorted(percents, reverse=True)
  assert sum(percents) == pytest.approx(100, abs=0.2)
  assert {row.split('%')[1].rstrip(' █').strip() for row in rows} == set(
    LABELS.split(',')
  )


def test_top_limits_what_is_shown(clip_jax, workdir, photo):
  result = clip_jax(
    'classify', f'--model={workdir}', f'--labels={LABELS}', '--top=1', photo
  )
  (line,) = result.out.splitlines()  # an image a line
  assert line.endswith(f'  {photo}')
  assert '%' in line
  result = clip_jax(
    'classify', f'--model={workdir}', f'--labels={LABELS}', '--top=2', photo
  )
  assert len(result.out.splitlines()) == 3


def test_json_has_each_label_of_each_image(clip_jax, workdir, photos):
  paths = sorted(photos.rglob('*.png'))
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
  clip_jax, workdir, photo, tmp_path
):
  names = tmp_path / 'names.txt'
  names.write_bytes('\ufeffred square\r\n\ncat, face\r\n'.encode())
  prompts = tmp_path / 'prompts.txt'
  prompts.write_text('big {}\nsmall {}\n')
  result = clip_jax(
    'classify', f'--model={workdir}', f'--labels=@{names}', '--json',
    f'--templates=@{prompts}', '--templates={}, it is', photo,
  )  # fmt: skip
  expected = package.load(workdir).classify(
    photo, ['red square', 'cat, face'], ['big {}', 'small {}', '{}, it is']
  )
  actual = list(result.json[0]['labels'].values())
  np.testing.assert_allclose([actual], expected, rtol=1e-5)


def test_wrong_calls_are_one_line(refused, workdir, photo, tmp_path):
  model, labels = f'--model={workdir}', f'--labels={LABELS}'
  refused('no --model', 'classify', labels, photo)
  refused('no --labels', 'classify', model, photo)
  refused('no labels', 'classify', model, '--labels=', photo)
  refused('label 2 of 3 is empty', 'classify', model, '--labels=a,,b', photo)
  refused('no images', 'classify', model, labels)
  refused('no file', 'classify', model, labels, tmp_path / 'none.png')
  refused('no images in', 'classify', model, labels, tmp_path)
  refused(
    '--csv and --json', 'classify', model, labels, '--csv', '--json', photo
  )
  refused('is a URL', 'classify', model, labels, 'https://a.org/b.png')
  refused('is a URL', 'classify', model, labels, photo, 'gs://a/b.png')
  refused(
    '--max_megapixels', 'classify', model, labels, '--max_megapixels=x', photo
  )
  refused("'folder:/nowhere'", 'classify', model, labels, 'folder:/nowhere')
  refused(
    'is one prompt with 2 slots. Give more prompts by more flags',
    'classify',
    model,
    labels,
    '--templates={},a drawing of {}.',
    photo,
  )
  refused('no slot', 'classify', model, labels, '--templates=a photo', photo)
  refused('no model in', 'classify', f'--model={tmp_path}', labels, photo)
  refused('--top=0', 'classify', model, labels, '--top=0', photo)
  refused('none.txt: no such', 'classify', model, '--labels=@none.txt', photo)


def test_a_file_of_labels_is_not_taken_for_a_label(
  refused, workdir, photo, tmp_path
):
  names = tmp_path / 'names.txt'
  names.write_text('cat\ndog\n')
  refused(
    f'--labels=@{names}',
    'classify', f'--model={workdir}', f'--labels={names}', photo,
  )  # fmt: skip


def test_of_one_label_it_is_said_that_it_cannot_lose(clip_jax, workdir, photo):
  call = ('classify', f'--model={workdir}', '--labels=cat', photo)
  assert "note: 'cat' is the only label" in clip_jax(*call).err
  assert 'note' not in clip_jax(*call, '--independent').err


@pytest.fixture
def mixed(tmp_path, photo):
  """A good image, a damaged one, and another good one."""
  folder = tmp_path / 'mixed'
  folder.mkdir()
  for name in ('a.png', 'c.png'):
    shutil.copy(photo, folder / name)
  (folder / 'b.png').write_bytes(photo.read_bytes()[:90])
  return folder


@pytest.mark.parametrize('form', ['--json', '--csv', '--top=1'])
def test_one_bad_image_costs_its_own_result_only(
  clip_jax, workdir, mixed, form
):
  paths = [mixed / f'{x}.png' for x in 'abc']
  result = clip_jax(
    'classify', f'--model={workdir}', f'--labels={LABELS}', form, *paths
  )
  assert result.code == 1
  (line,) = result.err.splitlines()
  assert line.startswith(f'error: {paths[1]}: damaged image')
  for path in paths:
    assert (str(path) in result.out) == (path != paths[1])
  if form == '--json':
    assert [x['image'] for x in result.json] == [str(paths[0]), str(paths[2])]
    assert result.json[0]['labels'] == result.json[1]['labels']


def test_missing_and_odd_files_among_others(clip_jax, workdir, photo, tmp_path):
  os.mkfifo(tmp_path / 'fifo.png')
  bad = [tmp_path / 'none.png', tmp_path / 'fifo.png', '/dev/zero']
  result = clip_jax(
    'classify', f'--model={workdir}', f'--labels={LABELS}', '--top=1',
    *bad, photo,
  )  # fmt: skip
  assert result.code == 1
  assert len(result.out.splitlines()) == 1
  lines = result.err.splitlines()
  assert [line.split(': ')[1] for line in lines] == [str(x) for x in bad]


def test_a_folder_a_data_set_and_a_list(clip_jax, workdir, photos, monkeypatch):
  paths = sorted(str(x) for x in photos.rglob('*.png'))

  def names(*words, stdin=b''):
    monkeypatch.setattr('sys.stdin', io.TextIOWrapper(io.BytesIO(stdin)))
    result = clip_jax(
      'classify', f'--model={workdir}', f'--labels={LABELS}', '--csv', *words
    )
    assert (result.code, result.err) == (0, '')
    return [row['image'] for row in csv.DictReader(io.StringIO(result.out))]

  assert sorted(names(photos)) == paths
  ids = [os.path.relpath(path, photos) for path in paths]
  assert sorted(names(f'folder:{photos}')) == ids
  assert names('-', stdin='\n'.join(paths).encode() + b'\n\n') == paths
  assert names('-', stdin='\0'.join(paths).encode()) == paths
  assert names(paths[0], '-', stdin=os.fsencode(paths[1])) == paths[:2]


def test_the_path_of_a_table_or_a_split_alone_is_a_data_set(
  clip_jax, workdir, photo, photos, tmp_path
):
  table = tmp_path / 'stray.csv'
  table.write_text(f'image,caption\n{photo},red\n')
  call = ('classify', f'--model={workdir}', f'--labels={LABELS}', '--top=1')
  result = clip_jax(*call, table)
  assert (result.code, len(result.out.splitlines())) == (0, 1)
  assert f'taken for csv:{table}' in result.err
  result = clip_jax(*call, f'{photos.parent}#{photos.name}')
  assert result.code == 0
  assert 'taken for folder:' in result.err
  result = clip_jax(*call, photo, table)  # as of photos/*
  assert (result.code, len(result.out.splitlines())) == (1, 1)
  assert result.err.startswith(f'error: {table}: not an image')


def test_a_list_may_name_what_is_not_there(
  clip_jax, refused, workdir, photo, monkeypatch
):
  call = ('classify', f'--model={workdir}', f'--labels={LABELS}', '--top=1')
  stdin = f'/nowhere/a.png\nhttps://a.org/b.png\n{photo}\n'.encode()
  monkeypatch.setattr('sys.stdin', io.TextIOWrapper(io.BytesIO(stdin)))
  result = clip_jax(*call, '-')
  assert result.code == 1
  assert len(result.out.splitlines()) == 1
  missing, url = result.err.splitlines()
  assert missing == 'error: /nowhere/a.png: no such file.'
  assert url.startswith('error: https://a.org/b.png is a URL')
  monkeypatch.setattr('sys.stdin', io.TextIOWrapper(io.BytesIO()))
  refused('stdin is empty', *call, '-')


def test_csv_has_a_line_an_image(clip_jax, workdir, photo):
  call = ('classify', f'--model={workdir}', f'--labels={LABELS}', photo)
  result = clip_jax(*call, '--csv', '--top=2')
  head, row = csv.reader(io.StringIO(result.out))
  assert head == ['image', 'label', 'probability', 'label_2', 'probability_2']
  labels = clip_jax(*call, '--json').json[0]['labels']
  best = sorted(labels, key=lambda x: -labels[x])
  assert row[:2] == [str(photo), best[0]]
  assert row[3] == best[1]
  assert float(row[2]) == pytest.approx(labels[best[0]], rel=1e-4)


def test_a_label_that_is_given_twice_counts_once(clip_jax, workdir, photo):
  call = ('classify', f'--model={workdir}', '--json', photo)
  once = clip_jax(*call, '--labels=crane,red').json
  twice = clip_jax(*call, '--labels=crane,red,crane')
  assert twice.code == 0
  assert twice.err == (
    "warning: given more than once, and counted once: 'crane'.\n"
  )
  assert twice.json == once
  near = clip_jax(*call, '--labels=red_square,red square')
  assert set(near.json[0]['labels']) == {'red_square', 'red square'}
  assert 'these labels are the same name' in near.err


def test_names_in_any_bytes_and_terminals_in_ascii(workdir, photo, tmp_path):
  path = os.path.join(os.fsencode(tmp_path), b'caf\xe9 \xff.png')
  shutil.copy(photo, path)
  command = [
    sys.executable, '-m', 'clip_jax', 'classify', f'--model={workdir}',
    '--labels=caf\xe9,\U0001f600', '--json',
  ]  # fmt: skip
  environment = os.environ | {'PYTHONIOENCODING': 'ascii'}
  for form in ('--json', '--nojson'):
    done = subprocess.run(
      [*command, form, path], env=environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b'')
    text = done.stdout.decode('ascii')
    if form == '--json':
      (parsed,) = json.loads(text)
      assert os.fsencode(parsed['image']) == path
      assert list(parsed['labels']) == ['caf\xe9', '\U0001f600']
    else:
      assert '#' in text and 'caf\\xe9' in text


def test_an_image_that_is_too_large_names_the_flag(
  clip_jax, workdir, tmp_path, monkeypatch
):
  monkeypatch.setenv('CLIP_JAX_MAX_MEGAPIXELS', '100')  # put back afterwards
  Image.new('L', (2000, 1000)).save(tmp_path / 'a.png')
  call = ('classify', f'--model={workdir}', '--labels=a,b', tmp_path / 'a.png')
  result = clip_jax(*call, '--max_megapixels=1')
  assert (result.code, result.out) == (1, '')
  assert 'too large: 2,000 x 1,000' in result.err
  assert '--max_megapixels=2 lifts' in result.err
  assert clip_jax(*call, '--max_megapixels=2').code == 0


def test_a_names_file_that_is_not_utf8_names_the_line(
  refused, workdir, photo, tmp_path
):
  names = tmp_path / 'names.txt'
  names.write_bytes(b'cat\nna\xefve\n')
  refused(
    'names.txt, line 2: not UTF-8 (byte 0xef)',
    'classify', f'--model={workdir}', f'--labels=@{names}', photo,
  )  # fmt: skip


def test_a_junk_image_is_one_line(clip_jax, workdir, tmp_path):
  junk = tmp_path / 'a.png'
  junk.write_text('junk')
  result = clip_jax('classify', f'--model={workdir}', '--labels=a,b', junk)
  assert result.code == 1
  assert result.out == ''
  assert f'error: {junk}: not an image' in result.err


@pytest.fixture(scope='session')
def siglip_words(tmp_path_factory):
  """--tokenizer for the golden SigLIP, which has 100 ids."""
  path = tmp_path_factory.mktemp('pieces') / 'pieces.model'
  sentence_piece.train(CAPTIONS, 25, path)
  return f'--tokenizer=siglip:{path}'


def test_independent_labels_of_a_siglip(clip_jax, siglip_words, photo):
  call = (
    'classify', f'--model={GOLDENS / "hf_siglip"}', siglip_words,
    f'--labels={LABELS}', '--json', photo,
  )  # fmt: skip
  alone = clip_jax(*call, '--independent').json[0]['labels']
  together = clip_jax(*call).json[0]['labels']
  model = package.load(
    GOLDENS / 'hf_siglip', tokenizer=siglip_words.partition('=')[2]
  )
  labels = LABELS.split(',')
  cosines = model.encode_image([photo]) @ model.encode_text(labels).T
  logits = model.logit_scale * cosines[0] + model.logit_bias
  np.testing.assert_allclose(
    list(alone.values()), 1 / (1 + np.exp(-logits)), rtol=1e-4
  )
  powers = np.exp(logits - logits.max())
  np.testing.assert_allclose(
    list(together.values()), powers / powers.sum(), rtol=1e-4
  )


def test_independent_labels_of_a_softmax_are_refused(refused, workdir, photo):
  refused(
    'need a model with a logit bias',
    'classify', f'--model={workdir}', f'--labels={LABELS}', '--independent',
    photo,
  )  # fmt: skip


def test_a_model_without_a_tokenizer_is_one_line(refused, photo):
  refused(
    'came without a tokenizer',
    'classify', f'--model={GOLDENS / "hf_siglip"}', '--labels=a,b', photo,
  )  # fmt: skip


@pytest.fixture
def photographs(tmp_path):
  """One that EXIF turns, one that is half transparent, and a plain one."""
  rng = np.random.default_rng(3)
  pixels = rng.integers(0, 256, (40, 40, 4), dtype=np.uint8)
  pixels[:20, :, 3] = 0
  pixels[20:, :, 3] = 255
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = 6
  rgb = Image.fromarray(np.sort(pixels[:, :, :3], axis=0))
  rgb.save(tmp_path / 'turned.png', exif=exif)
  Image.fromarray(pixels).save(tmp_path / 'transparent.png')
  rgb.save(tmp_path / 'plain.png')
  return [tmp_path / f'{n}.png' for n in ('turned', 'transparent', 'plain')]


def test_as_displayed_is_for_turned_and_transparent_images(
  clip_jax, siglip_words, photographs
):
  call = (
    'classify', f'--model={GOLDENS / "hf_siglip"}', siglip_words,
    f'--labels={LABELS}', '--json',
  )  # fmt: skip
  stored = clip_jax(*call, *photographs).json
  shown = clip_jax(*call, '--as_displayed', *photographs).json
  changed = [
    max(abs(a['labels'][n] - b['labels'][n]) for n in a['labels']) > 1e-4
    for a, b in zip(stored, shown, strict=True)
  ]
  # transformers' own transform lays transparency on white already.
  assert changed == [True, False, False]


def test_as_displayed_lays_transparency_on_white(clip_jax, photographs):
  call = (
    'classify', f'--model={GOLDENS / "open_clip_vit_gelu"}',
    f'--labels={LABELS}', '--json',
  )  # fmt: skip
  stored = clip_jax(*call, *photographs[1:]).json
  shown = clip_jax(*call, '--as_displayed', *photographs[1:]).json
  assert stored[0]['labels'] != pytest.approx(shown[0]['labels'], abs=1e-4)
  assert stored[1]['labels'] == pytest.approx(shown[1]['labels'], abs=1e-6)


def test_another_image_size(clip_jax, refused, workdir, photo):
  call = ('classify', f'--model={workdir}', f'--labels={LABELS}', photo)
  result = clip_jax(*call, '--image_size=32', '--json')
  expected = package.load(workdir, image_size=32).classify(
    photo, LABELS.split(',')
  )
  actual = list(result.json[0]['labels'].values())
  np.testing.assert_allclose([actual], expected, rtol=1e-5)
  assert actual != pytest.approx(
    list(clip_jax(*call, '--json').json[0]['labels'].values()), abs=1e-4
  )
  refused('image_size', *call, '--image_size=0')
  refused('is smaller than', *call, '--image_size=4')
