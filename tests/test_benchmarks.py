"""What `clip-jax bench` prints is measured and has the agreed names."""

import contextlib
import importlib.util
import io
import json
import os
import pathlib
import time

import jax
import pytest
from PIL import Image

from clip_jax.__main__ import main
from clip_jax.benchmarks import encode, host, loss, peer, train
from clip_jax.benchmarks.photographs import make_photographs
from clip_jax.benchmarks.timing import median_seconds
from clip_jax.errors import FailureError
from clip_jax.models import presets
from clip_jax.models.counting import PEAK_FLOPS, encoding_flops, training_flops
from clip_jax.parallel.mesh import make_mesh
from tests.tiny import TINY, write_pairs
from tests.waiting import Clock

TINY_FIELDS = {
  **TINY.to_dict(),
  'text': TINY.to_dict()['text']
  | {'vocab_size': 49_408, 'end_token': 49_407, 'context_length': 16},
}


@pytest.fixture
def tiny_preset(monkeypatch):
  preset = presets.Preset(TINY_FIELDS, {}, 'clip', 'these tests')
  monkeypatch.setitem(presets.PRESETS, 'tiny', preset)
  return 'tiny'


@pytest.fixture
def pairs(tmp_path):
  return write_pairs(tmp_path / 'pairs')


def bench(capsys, *argv):
  assert main(['bench', *argv, '--json', '--cpu_devices=8']) == 0
  return json.loads(capsys.readouterr().out)


def test_train(capsys, tiny_preset, pairs):
  figures = bench(
    capsys, 'train', f'--preset={tiny_preset}', f'--data={pairs}',
    '--batch=16', '--steps=3',
  )  # fmt: skip
  assert figures['examples_per_second'] > 0
  assert 0 <= figures['input_wait_fraction'] <= 1
  assert (figures['batch'], figures['devices']) == (16, 8)
  done = figures['share_of_product_rate'] * figures['product_rate']
  pair = training_flops(presets.resolve(tiny_preset))
  assert done / figures['examples_per_second'] == pytest.approx(pair)


@pytest.mark.slow
def test_arithmetic_is_that_of_the_lengths_that_steps_computed(
  capsys, pairs, monkeypatch
):
  text = TINY_FIELDS['text'] | {'context_length': 64}
  preset = presets.Preset(TINY_FIELDS | {'text': text}, {}, 'clip', 'tests')
  monkeypatch.setitem(presets.PRESETS, 'long', preset)
  monkeypatch.setitem(
    presets.PRESETS, 'short', presets.Preset(TINY_FIELDS, {}, 'clip', 'tests')
  )
  figures = bench(
    capsys, 'train', '--preset=long', f'--data={pairs}', '--batch=16',
    '--steps=3',
  )  # fmt: skip
  assert figures['text_tokens'] == 16
  done = figures['share_of_product_rate'] * figures['product_rate']
  pair = training_flops(presets.resolve('short'))
  assert done / figures['examples_per_second'] == pytest.approx(pair)


def test_checkpoint(capsys, tiny_preset):
  figures = bench(capsys, 'checkpoint', f'--preset={tiny_preset}', '--steps=2')
  assert figures['synchronous_seconds'] > 0
  assert figures['ratio'] == pytest.approx(
    figures['stall_seconds'] / figures['synchronous_seconds']
  )
  parameters = presets.resolve(tiny_preset).text.vocab_size * 32  # and more
  assert figures['bytes'] > 3 * 4 * parameters


def test_encode(capsys, tiny_preset):
  figures = bench(
    capsys, 'encode', f'--preset={tiny_preset}', '--batch=8', '--batch=16',
    '--steps=2',
  )  # fmt: skip
  assert [row['batch'] for row in figures['batches']] == [8, 16]
  for row in figures['batches']:
    assert row['images_per_second'] > 0
    assert row['texts_per_second'] > 0


def test_encode_beside_a_plain_product(tiny_preset):
  figures = encode.bench_encode(tiny_preset, [8], 2, 'float32')
  done = figures['images_share_of_product_rate'] * figures['product_rate']
  assert done / figures['images_per_second'] == pytest.approx(
    encoding_flops(presets.resolve(tiny_preset))[0]
  )
  assert figures['texts_share_of_product_rate'] > 0


def test_encode_of_image_files(capsys, tiny_preset, tmp_path):
  data = write_pairs(tmp_path / 'pictures')
  figures = bench(
    capsys, 'encode', f'--preset={tiny_preset}', '--batch=8', '--steps=2',
    f'--data={data}',
  )  # fmt: skip
  assert figures['data'] == data
  assert figures['data_images_per_second'] > 0


def test_images_of_classes_are_classified_in_turns(
  capsys, tiny_preset, tmp_path
):
  for name in ('red', 'blue'):
    (tmp_path / name).mkdir()
    for i in range(3):
      Image.new('RGB', (20, 20), name).save(tmp_path / name / f'{i}.png')
  (tmp_path / 'red' / 'broken.png').write_bytes(b'no picture')
  figures = bench(
    capsys, 'encode', f'--preset={tiny_preset}', '--batch=8', '--steps=2',
    f'--data=folder:{tmp_path}',
  )  # fmt: skip
  assert (figures['data_images'], figures['classes']) == (6, 2)
  ratio = figures['zero_shot_ratio_of_fastest']
  assert figures['zero_shot_per_second'] > 0 < ratio


def test_encode_in_turns_with_open_clip(tiny_preset, monkeypatch):
  turns = []

  @contextlib.contextmanager
  def open_clip(preset, dtype, python):
    yield lambda *turn: turns.append(turn) or 1e3

  monkeypatch.setattr(encode, 'open_clip', open_clip)
  figures = encode.bench_encode(tiny_preset, [8], 3, 'float32', 'open_clip')
  (row,) = figures['batches']
  assert turns == [('image', 8)] * 3 + [('text', 8)] * 3
  assert row['open_clip_images_per_second'] == 8 / 1e3
  assert row['image_ratio'] > 1 and row['text_ratio_of_fastest'] > 1


def test_train_in_turns_with_open_clip(capsys, tiny_preset, pairs, monkeypatch):
  seconds = iter([3e3, 1e3, 2e3])
  turns, asked = [], []

  @contextlib.contextmanager
  def open_clip(*what):
    asked.append(what)
    yield lambda *turn: turns.append(turn) or next(seconds)

  monkeypatch.setattr(train, 'open_clip', open_clip)
  monkeypatch.setitem(PEAK_FLOPS, jax.devices()[0].device_kind, 1e12)
  figures = bench(
    capsys, 'train', f'--preset={tiny_preset}', f'--data={pairs}',
    '--batch=16', '--steps=3', '--against=open_clip', '--against_python=there',
  )  # fmt: skip
  assert asked == [(tiny_preset, 'float32', 'there')]
  assert turns == [('train', 16)] * 3
  ours, best = (
    figures[f'step_examples_per_second{kind}'] for kind in ('', '_at_best')
  )
  assert figures['open_clip_examples_per_second'] == 16 / 2e3
  assert figures['open_clip_examples_per_second_at_best'] == 16 / 1e3
  assert figures['ratio'] == pytest.approx(ours / (16 / 2e3))
  assert figures['ratio_at_best'] == pytest.approx(best / (16 / 1e3))
  assert 0 < ours <= best and figures['examples_per_second'] > 0
  for name in ('', 'step_', 'open_clip_'):
    flops = figures[f'{name}mfu'] * 1e12 * figures['devices']
    pair = training_flops(presets.resolve(tiny_preset))
    assert flops / figures[f'{name}examples_per_second'] == pytest.approx(pair)


def test_train_reads_the_emoji_where_no_data_is_named(monkeypatch, capsys):
  calls = []
  monkeypatch.setattr(
    train, 'bench_train', lambda *what: calls.append(what) or {}
  )
  bench(capsys, 'train')
  assert calls[0][3] == 'tfds:emoji#train'


@pytest.mark.skipif(
  importlib.util.find_spec('open_clip') is not None, reason='open_clip is here'
)
def test_open_clip_that_is_missing_is_named(tiny_preset):
  with (
    pytest.raises(FailureError, match='pip install open_clip_torch'),
    peer.open_clip(tiny_preset, 'float32'),
  ):
    pass


@pytest.mark.peers
@pytest.mark.slow
def test_open_clip_takes_turns_with_a_published_model():
  pytest.importorskip('open_clip')
  with peer.open_clip('ViT-B/32', 'float32') as turn:
    for what in ('image', 'text', 'train'):
      assert turn(what, 1) > 0


@pytest.mark.peers
def test_open_clip_says_which_model_it_does_not_know(tiny_preset):
  pytest.importorskip('open_clip')
  with (
    pytest.raises(FailureError, match='knows no model'),
    peer.open_clip(tiny_preset, 'float32'),
  ):
    pass


def test_only_encode_takes_several_batches(capsys):
  assert (
    main(['bench', 'loss', '--batch=8', '--batch=16', '--cpu_devices=8']) == 2
  )
  assert 'takes one --batch' in capsys.readouterr().err


def test_loss_has_a_row_for_each_form(capsys):
  rows = bench(capsys, 'loss', '--batch=256', '--embed-dim=32', '--steps=2')
  by_form = {row['form']: row for row in rows}
  assert set(by_form) == {'dense', 'all_gather', 'chunked', 'ring'}
  assert all(row['seconds'] > 0 for row in rows)
  assert all(row['temp_bytes'] > 0 for row in rows)
  assert by_form['ring']['chunk'] == 32


def test_the_sigmoid_loss(capsys):
  rows = bench(
    capsys, 'loss', '--objective=sigmoid', '--batch=256', '--embed-dim=32',
    '--steps=1', '--chunk=8',
  )  # fmt: skip
  assert {row['objective'] for row in rows} == {'sigmoid'}
  assert {row['chunk'] for row in rows} == {None, 8}


def test_a_form_that_memory_is_too_small_for_is_only_compiled(
  capsys, monkeypatch
):
  monkeypatch.setattr(loss, 'free_bytes', lambda: 200_000)
  rows = loss.bench_loss('softmax', 256, 32, None, 1)
  seconds = {row['form']: row['seconds'] for row in rows}
  assert seconds['dense'] is None
  assert 'dense: compiled, not run' in capsys.readouterr().err


@pytest.mark.slow
def test_at_the_papers_batch_the_chunked_loss_stays_small():
  """On one device; XLA's own figures, nothing is run."""
  mesh = make_mesh(devices=jax.devices()[:1])
  megabytes = {
    form: loss.compiled_loss('softmax', form, mesh, 32_768, 512, 1024)
    .memory_analysis()
    .temp_size_in_bytes
    / 1e6
    for form in ('dense', 'chunked', 'ring')
  }
  assert megabytes['chunked'] < 400
  assert megabytes['ring'] < 400
  assert megabytes['dense'] > 8_000


def test_chunks_that_do_not_divide_are_refused(capsys):
  argv = ['bench', 'loss', '--batch=256', '--chunk=7', '--cpu_devices=8']
  assert main(argv) == 2
  assert 'chunk=7 does not divide the 32 pairs' in capsys.readouterr().err


def test_input(capsys, pairs):
  figures = bench(
    capsys, 'input', f'--data={pairs}', '--image_size=16', '--steps=2'
  )
  assert figures['examples_per_second'] > 0


def test_input_of_made_up_photographs(capsys, monkeypatch):
  monkeypatch.setattr(host, '_IMAGES', 2)
  figures = bench(
    capsys, 'input', '--steps=1', '--batch=4', '--image_size=32',
    '--decode=exact',
  )  # fmt: skip
  assert figures['examples_per_second'] > 0
  assert (figures['data'], figures['decode']) == (host.MADE, 'exact')


def test_made_up_photographs_are_jpegs_of_a_photographs_size():
  first, second = make_photographs(2)
  for data in (first, second):
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.mode, image.size) == ('JPEG', 'RGB', (500, 375))
    assert 50_000 < len(data) < 80_000
    assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]
  assert first != second
  assert make_photographs(1) == [first]


@pytest.mark.parametrize('data', [False, True])
def test_input_in_turns_with_open_clip(capsys, monkeypatch, tmp_path, data):
  monkeypatch.setattr(host, '_IMAGES', 3)
  if data:
    data = write_pairs(tmp_path / 'pairs', 5)
    (tmp_path / 'pairs' / '000.png').write_bytes(b'no picture')
  turns, asked = [], []

  @contextlib.contextmanager
  def open_clip_input(folder, size, python):
    files = sorted(pathlib.Path(folder).iterdir())
    asked.append((len(files), size, python, len(os.sched_getaffinity(0))))
    yield (
      lambda *turn: turns.append(turn) or (1e3 if turn[0][0] == 'p' else 5e2)
    )

  monkeypatch.setattr(host, 'open_clip_input', open_clip_input)
  before = os.sched_getaffinity(0)
  figures = bench(
    capsys, 'input', '--against=open_clip', '--against_python=there',
    '--steps=2', '--batch=4', '--image_size=16',
    *([f'--data={data}'] if data else []),
  )  # fmt: skip
  assert asked == [(2 if data else 3, 16, 'there', 1)]
  assert os.sched_getaffinity(0) == before
  assert turns == [('published', 4), ('square', 4)] * 3
  assert figures['open_clip_per_second'] == 4 / 1e3
  assert figures['ratio'] > figures['ratio_same_crop'] > 1
  assert figures['ratio_of_fastest'] >= figures['ratio']
  assert figures['images'] == asked[0][0]


def test_turns_of_input_are_taken_without_workers(capsys):
  options = ['--against=open_clip', '--workers=2', '--cpu_devices=8']
  assert main(['bench', 'input', *options]) == 2
  assert '--workers=2: turns are taken on one core' in capsys.readouterr().err


@pytest.mark.peers
def test_open_clips_training_transform_takes_turns(tmp_path):
  pytest.importorskip('open_clip')
  for number, data in enumerate(make_photographs(2)):
    (tmp_path / f'{number}').write_bytes(data)
  with peer.open_clip_input(tmp_path, 224) as turn:
    for what in ('published', 'square'):
      assert turn(what, 3) > 0


def test_tokenizer(capsys, pairs):
  figures = bench(capsys, 'tokenizer', f'--data={pairs}', '--steps=2')
  assert figures['captions'] == 24
  assert figures['examples_per_second'] > 0


def test_tokenizer_on_captions_of_its_own(capsys, monkeypatch):
  monkeypatch.setattr(host, '_CAPTIONS', 50)
  figures = bench(capsys, 'tokenizer', '--steps=2')
  assert (figures['captions'], figures['data']) == (50, 'plain captions')
  assert figures['first_examples_per_second'] > 0


def test_a_batch_that_does_not_split_is_refused(capsys):
  assert main(['bench', 'loss', '--batch=9', '--cpu_devices=8']) == 2
  assert 'does not split over 8 devices' in capsys.readouterr().err


def test_the_median_leaves_the_first_calls_out():
  calls = []
  median_seconds(lambda: calls.append(1), 3)
  assert len(calls) == 5


def test_the_median_is_taken_of_what_there_was_time_for(monkeypatch):
  calls, clock = [], Clock()
  monkeypatch.setattr(time, 'perf_counter', clock)

  def call():
    calls.append(1)
    clock.pass_by(2)

  assert median_seconds(call, 100, max_seconds=0.0) == 2
  assert len(calls) == 1
  assert median_seconds(call, 100, max_seconds=5.0) == 2
  assert len(calls) == 1 + 3


def test_index_of_a_made_up_number_of_records(capsys):
  figures = bench(capsys, 'index', '--records=25_000', '--batch=8', '--steps=2')
  assert (figures['records'], figures['shards']) == (25_000, 3)
  assert 0 < figures['opening_seconds'] < 60
  assert 0 < figures['lookup_seconds_per_batch'] < 60
  assert figures['resident_bytes_before_opening'] <= figures['resident_bytes']
