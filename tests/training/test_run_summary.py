"""What a run says before its first step."""

from pathlib import Path

import pytest

from clip_jax.data.sources import Source
from clip_jax.errors import UsageError
from clip_jax.tokenizers.base import Tokenizer
from clip_jax.training.config import with_defaults
from clip_jax.training.run import prepare_run
from clip_jax.training.run_summary import (
  describe_run,
  draw_captions,
  warn_of_short_average,
  warn_of_training_data,
  warn_of_truncated_captions,
)
from clip_jax.training.workdir import Workdir
from tests.tiny import tiny_config, write_pairs


@pytest.fixture
def config(tmp_path):
  config = tiny_config()
  config.data.train = write_pairs(tmp_path / 'images')
  return config


def described(config, first_step=0):
  run = prepare_run(with_defaults(config))
  captions, are_all = draw_captions(run.sources)
  workdir = Workdir('some/run', Path('some/run'))
  return describe_run(run, workdir, first_step, captions, are_all)


def test_a_run_is_told_in_a_few_lines(config, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  lines = dict(line.split(None, 1) for line in described(config).splitlines())
  assert lines['data'].startswith('24 pairs in folder:')
  assert lines['data'].endswith('24 captions, all different')
  assert lines['steps'] == (
    '12, each of 16 pairs; an epoch is 1.5 steps, the run 8.0 epochs'
  )
  run = prepare_run(with_defaults(config))
  assert '16 x 16 pixels' in lines['image']
  assert lines['text'].endswith('16 tokens, vocabulary of 49,408')
  assert lines['model'].endswith('parameters, float32, softmax loss')
  assert lines['devices'].startswith(f'{run.program.mesh.size} x cpu, 1 proc')
  assert lines['evaluation'].startswith('none')
  assert lines['output'].startswith(f'{tmp_path}/some/run: metrics.jsonl')
  assert 'every 4 steps' in lines['output']
  assert '; 5 are done' in described(config, 5)
  config.data.batch_size = 2400
  assert 'an epoch is 0.01 steps' in described(config)


@pytest.mark.parametrize(
  ('decay', 'steps', 'advice'),
  [
    (0.999, 850, 'leaves 43 % of the random first weights'),
    (0.999, 850, 'use at most 0.991,'),
    (0.9999, 10_000, 'use at most 0.9992,'),
    (0.5, 4, 'use at most 0,'),
    (0.99, 850, None),
    (0.0, 4, None),
  ],
)
def test_random_weights_in_an_average_are_warned_of(
  decay, steps, advice, capsys
):
  config = tiny_config()
  config.optimizer.ema_decay, config.total_steps = decay, steps
  warn_of_short_average(config)
  said = capsys.readouterr().err
  assert (advice in said) if advice else not said
  config.initialize_from = 'a/model'  # whose weights are no noise
  warn_of_short_average(config)
  assert capsys.readouterr().err == ''


def test_captions_that_are_the_same_are_counted(config, tmp_path):
  for path in (tmp_path / 'images').glob('*.txt'):
    path.write_text('a picture')
  assert '24 captions, 1 different' in described(config)


def test_passes_over_each_data_set_of_a_mixture(config, tmp_path):
  more = write_pairs(tmp_path / 'more', 8)
  config.data.update(train=f'{config.data.train}::{more}', weights=(3.0, 1.0))
  said = described(config)
  assert f'6.0 epochs of {more}' in said
  assert '32 captions, 24 different' in said


class Endless(Source):
  """10^9 records, which nobody reads one after another."""

  spec = 'endless'

  def __init__(self):
    self.read = 0

  def __len__(self):
    return 10**9

  def __getitem__(self, index):
    raise AssertionError('no image is needed')

  def id(self, index):
    return str(index)

  def captions(self, index):
    self.read += 1
    return [f'number {index}']


def test_of_many_records_some_are_looked_at():
  source = Endless()
  captions, are_all = draw_captions([source])
  assert not are_all
  assert source.read == len(captions) <= 10_000
  assert len({len(caption) for caption in captions}) > 1


def test_cut_captions_are_said(config, capsys):
  for length, said in ((4, True), (16, False)):
    config.model.text.context_length = length
    run = prepare_run(with_defaults(config))
    warn_of_truncated_captions(run, draw_captions(run.sources)[0])
    message = '24 of 24 captions looked at are longer than'
    assert (message in capsys.readouterr().err) == said


def test_captions_are_as_long_as_their_prompts(config, capsys):
  config.model.text.context_length = 9
  for templates, said in (((), False), (('{}', 'a bad photo of {}.'), True)):
    config.data.templates = templates
    run = prepare_run(with_defaults(config))
    capsys.readouterr()
    warn_of_truncated_captions(run, draw_captions(run.sources)[0])
    assert ('24 of 24 captions' in capsys.readouterr().err) == said
  config.data.templates = ('a photo',)
  with pytest.raises(UsageError, match="'a photo' has no slot"):
    prepare_run(with_defaults(config))


def test_the_loss_of_held_out_pairs_needs_no_task(config, tmp_path):
  config.evaluation.data = write_pairs(tmp_path / 'held_out', 8)
  [line] = [x for x in described(config).splitlines() if x[:4] == 'eval']
  when = 'every 1,000 steps and at the end'
  assert line.split(None, 1)[1] == f'loss on {config.evaluation.data}, {when}'


def test_data_that_are_trained_on_are_not_held_out(
  config, tmp_path, monkeypatch, capfd
):
  held_out = write_pairs(tmp_path / 'held_out', 8)
  first = config.data.train
  config.data.train = f'{held_out}::{first}'
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'link').symlink_to(tmp_path / 'images')
  for spec in (
    first,
    f'{first}/',
    str(tmp_path / 'images'),
    'folder:~/images',
    f'folder:{tmp_path}#images',
    f'folder:{tmp_path}/link',
  ):
    config.evaluation.data = spec
    warn_of_training_data(prepare_run(with_defaults(config)))
    assert f'evaluation.data={spec} is trained on' in capfd.readouterr().err
  config.data.train = first
  config.evaluation.data = held_out
  warn_of_training_data(prepare_run(with_defaults(config)))
  assert 'trained on' not in capfd.readouterr().err


def test_a_caption_decoder_has_a_row(config):
  assert '  decoder' not in described(config)
  config.objective.name = 'bag_of_words'
  config.model.decoder.reads = 'pooled_image'
  [row] = [
    x for x in described(config).splitlines() if x.startswith('  decoder')
  ]
  assert row.split()[1:3] == [f'{33 * 49_408:,}', 'parameters,']
  assert row.endswith('predicts words from the pooled image')


def test_captions_that_begin_with_padding_are_refused(config, monkeypatch):
  config.objective.name = 'bag_of_words'
  config.model.decoder.reads = 'pooled_image'
  monkeypatch.setattr(Tokenizer, 'padding_side', 'left')
  with pytest.raises(UsageError, match=r'pads texts on the left'):
    prepare_run(with_defaults(config))
