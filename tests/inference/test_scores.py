"""The model that scores pairs: one checkpoint of a run."""

import shutil

import pytest

from clip_jax.errors import UsageError
from clip_jax.inference.scores import PairScorer
from tests.tiny_run import write_run


def test_a_pinned_scorer_keeps_its_checkpoint(tmp_path):
  run = write_run(tmp_path / 'run', (7,))
  scorer = PairScorer(str(run), (('batch_size', 2),))
  pinned = scorer.pinned()
  write_run(run, (7, 9))
  assert pinned.model().step == 7
  assert scorer.pinned().model().step == 9
  assert pinned.options == scorer.options
  assert pinned.pinned() == pinned


@pytest.mark.parametrize('is_empty', [True, False])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, is_empty):
  run = write_run(tmp_path / 'run', (7, 9))
  shutil.rmtree(run / 'checkpoints/9/params')
  if is_empty:
    (run / 'checkpoints/9/params').mkdir()
  assert PairScorer(str(run)).pinned().model().step == 7


def test_a_wrong_option_is_named(tmp_path):
  run = write_run(tmp_path / 'run', (7,))
  scorer = PairScorer(str(run), (('preset', 'ViT-B/32'),)).pinned()
  with pytest.raises(UsageError, match='preset'):
    scorer.model()
