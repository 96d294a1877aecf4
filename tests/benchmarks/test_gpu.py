"""`python -m clip_jax.benchmarks.gpu`: batches, tables, what is left out."""

import argparse
import contextlib
import json
import os
import subprocess
import sys

import pytest

from clip_jax.benchmarks import gpu, peer
from clip_jax.errors import FailureError
from clip_jax.models.counting import PEAK_FLOPS


@pytest.mark.slow
def test_a_dry_run_measures_all_of_ours(tmp_path):
  out = tmp_path / 'gpu.json'
  run = subprocess.run(
    [
      sys.executable, '-m', 'clip_jax.benchmarks.gpu', '--dry_run',
      '--minutes=60', f'--out={out}',
    ],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=False,
  )  # fmt: skip
  assert run.returncode == 0, run.stderr[-2_000:]
  document = json.loads(out.read_text())
  rows = document['rows']
  assert [row['preset'] for row in rows['train']] == [
    'ViT-B/32', 'ViT-L/14', 'ViT-B/16',
  ]  # fmt: skip
  assert all(row['pairs_per_second'] > 0 for row in rows['train'])
  assert not any('mfu' in row for row in rows['train'])
  assert all(row['peak_bytes'] > 0 for row in rows['train'])
  assert all(row['error'] < 0.03 for row in rows['attention'])
  assert len(rows['loss']) == 4 and len(rows['encode']) == 2
  assert set(document['left_out']) == {
    f'train {preset} open_clip'
    for preset in ('ViT-B/32', 'ViT-L/14', 'ViT-B/16')
  }
  for line in ('attention', 'train', 'encode', 'loss', 'left out: train ViT'):
    assert f'\n{line}' in '\n' + run.stdout


@pytest.mark.parametrize(
  ('bytes_of', 'batch'),
  [
    (lambda pairs: 100 + pairs, 800),  # as the first plan has it
    (lambda pairs: 100 + pairs // 2, 850),  # the most that is asked for
    (lambda pairs: 100 + pairs**1.1, 400),  # later pairs need more
    (lambda pairs: 840 + pairs, 50),  # half of the first
    (lambda pairs: 950 + pairs, 1),  # the least, whatever it needs
  ],
)
def test_the_largest_batch_is_found_by_plans(monkeypatch, bytes_of, batch):
  asked = []
  monkeypatch.setattr(gpu, 'planned_bytes', bytes_of)
  found = gpu.largest_batch(
    lambda pairs: asked.append(pairs) or pairs, 100, 900.0, 100, most=850
  )
  assert found == (batch, batch)
  assert len(asked) <= 7


def options(**changes):
  fields = {'minutes': 1.0, 'dry_run': False, 'against_python': 'there'}
  return argparse.Namespace(**{**fields, 'batch': 8, **changes})


def test_what_does_not_fit_is_left_out_by_name(monkeypatch):
  kind = 'NVIDIA H200'
  limits = {}

  def in_child(part, options, batch, limit):
    limits[part.name] = limit
    if part.preset == 'ViT-B/16' or part.kind == 'loss':
      raise FailureError('it took more than 3 s')
    row = {'preset': part.preset, 'library': part.library}
    row |= {'batch': batch, 'pairs_per_second': 100.0, 'device_kind': kind}
    return [
      row
      | (
        {'batch': 32, 'pairs_per_second': 150.0}
        if part.library == 'clip_jax'
        else {}
      )
    ]

  monkeypatch.setattr(gpu, '_in_child', in_child)
  document = gpu.measure_all(options())
  assert set(document['left_out']) == {
    'train ViT-B/16 clip_jax', 'train ViT-B/16 open_clip', 'loss clip_jax',
  }  # fmt: skip
  ours, theirs = document['rows']['train'][:2]
  assert theirs['batch'] == 32 and ours['ratio'] == 1.5
  assert ours['mfu'] == pytest.approx(1.5 * theirs['mfu'])
  assert PEAK_FLOPS[kind] == 989e12
  # The last part gets all of the time that is left.
  assert limits['loss clip_jax'] == pytest.approx(60, abs=1)
  text = gpu.report(document)
  assert 'left out: loss clip_jax: it took more than 3 s' in text


def test_a_part_that_takes_too_long_is_ended(monkeypatch):
  started = []
  popen = subprocess.Popen

  def sleeping(arguments, **more):
    started.append(popen(['sleep', '600'], **more))
    return started[0]

  monkeypatch.setattr(subprocess, 'Popen', sleeping)
  with pytest.raises(FailureError, match='it took more than 0 s'):
    gpu._in_child(gpu.PARTS[0], options(), 8, 0.1)
  assert started[0].returncode == -9


def test_open_clip_gets_the_half_of_a_batch_that_it_can_hold(monkeypatch):
  turns = []

  @contextlib.contextmanager
  def open_clip(preset, dtype, python):
    assert (preset, dtype, python) == ('ViT-B/32', 'bfloat16', 'there')

    def turn(what, batch):
      turns.append((what, batch))
      if batch > 100:
        raise peer.OutOfMemoryError('CUDA out of memory.')
      return 0.5

    yield turn

  monkeypatch.setattr(peer, 'open_clip', open_clip)
  [row] = gpu.open_clip_rows('ViT-B/32', 256, 'there')
  assert (row['batch'], row['pairs_per_second']) == (64, 128)
  assert turns[:3] == [('train', 256), ('train', 128), ('train', 64)]


def test_what_open_clip_cannot_encode_leaves_our_rows(monkeypatch):
  @contextlib.contextmanager
  def open_clip(preset, dtype, python):
    def turn(what, batch):
      if batch > 100:
        raise peer.OutOfMemoryError('CUDA out of memory.')
      return 0.5

    yield turn

  monkeypatch.setattr(peer, 'open_clip', open_clip)
  monkeypatch.setattr(gpu, '_encode_seconds', lambda preset, batch, dry: 1.0)
  few, many, *_ = gpu.encode_rows(False, 'there')
  assert few['ratio'] == 0.5 and few['open_clip_images_per_second'] == 64
  assert many['images_per_second'] == 512
  assert many['open_clip_failed'] == 'CUDA out of memory.'


def test_a_file_in_no_folder_is_refused_before_all(capsys, tmp_path):
  assert gpu.main([f'--out={tmp_path}/none/gpu.json']) == 2
  assert 'error: --out=' in capsys.readouterr().err


def test_attention_has_the_error_of_its_dtype():
  rows = gpu.attention_rows(dry_run=True)
  assert all(0 < row['error'] < 0.03 for row in rows)
  assert {row['implementation'] for row in rows} == {'xla'}
