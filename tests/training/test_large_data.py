"""A run over 200 million records: nothing at its start reads them all."""

import io

import pytest

from clip_jax.data.sources import Source, open_source
from clip_jax.training import loop, run
from clip_jax.training.writers import Outputs
from tests.data.images import make_image
from tests.tiny import tiny_config, write_pairs

RECORDS = 200_000_000


class MadeUpSource(Source):
  """Records that are made when they are read, and counted."""

  spec = 'wds:made-up'

  def __init__(self):
    file = io.BytesIO()
    make_image(0, 16, 16).save(file, 'PNG')
    self._image = file.getvalue()
    self.read = 0

  def __len__(self):
    return RECORDS

  def id(self, index):
    return f'shard:{index}'

  def captions(self, index):
    self.read += 1
    return [f'caption {index}']

  def __getitem__(self, index):
    return {
      'id': self.id(index),
      'image': self._image,
      'caption': self.captions(index),
    }


@pytest.fixture
def source(monkeypatch):
  """The source that data.train=wds:made-up opens."""
  source = MadeUpSource()

  def open_it(spec, **options):
    return source if spec == source.spec else open_source(spec, **options)

  monkeypatch.setattr(run, 'open_source', open_it)
  return source


@pytest.mark.slow
def test_a_run_reads_its_batches_and_a_sample(source, tmp_path):
  config = tiny_config()
  config.update(total_steps=4, log_every_steps=1)
  config.data.train = source.spec
  config.evaluation.data = write_pairs(tmp_path / 'pictures')
  config.evaluation.tasks = ('retrieval',)
  loop.train(config, tmp_path / 'run', Outputs())
  config.total_steps = 5  # and once more, as a resumed run
  loop.train(config, tmp_path / 'run', Outputs())
  # 10,000 captions are looked at before the first step of each; then batches
  # of 16, those that are prefetched, and the sample that is evaluated.
  assert source.read < 25_000


@pytest.mark.slow
def test_a_mixture_weights_it_by_its_size(source, tmp_path):
  config = tiny_config()
  config.update(total_steps=3)
  config.data.train = f'{source.spec}::{write_pairs(tmp_path / "images")}'
  loop.train(config, tmp_path / 'run', Outputs())
  assert source.read < 12_000
