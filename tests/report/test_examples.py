"""Examples of a report, and what the model calls them."""

from clip_jax.report.examples import (
  Prediction,
  draw_examples,
  some_right_some_wrong,
)
from tests.report.fakes import CaptionedSource, FakeModel


def test_any_caption_of_an_image_is_right():
  examples = draw_examples(
    FakeModel(), CaptionedSource(labelled=False), evaluation=None, templates=(),
    limit=100, seed=0,
  )  # fmt: skip
  assert len(examples) == 34 and examples.choices == 68
  assert examples.captioned and examples.predictions is not None
  for i, prediction in enumerate(examples.predictions):
    assert prediction.right == examples.texts[i]
    assert len(prediction.answers) == 2 and len(prediction.top) == 5
  second = Prediction('a', [('x', 0.5), ('b', 0.4), ('a', 0.1)], ('b',))
  assert second.rank == 1


def _predictions(ranks):
  names = [f'name {i}' for i in range(5)]
  return [
    Prediction(
      'other' if rank is None else names[rank], [(n, 0.2) for n in names]
    )
    for rank in ranks
  ]


def test_right_and_wrong_ones_take_turns():
  ranks = [0, 0, 0, 0, 2, 1, None, 3]
  assert [p.rank for p in _predictions(ranks)] == ranks
  chosen = some_right_some_wrong(_predictions(ranks), 6, seed=0)
  assert [ranks[i] == 0 for i in chosen] == [True, False] * 3
  assert len(set(chosen)) == 6
  few = some_right_some_wrong(_predictions([0, 0, 0, 0, 4]), 4, seed=0)
  assert len(few) == 4 and 4 in few
  none = some_right_some_wrong(_predictions([1, None]), 6, seed=0)
  assert sorted(none) == [0, 1]
