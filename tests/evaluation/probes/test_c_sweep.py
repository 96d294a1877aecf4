"""The search against the whole sweep, on scores of every one-peaked shape."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.errors import FailureError
from clip_jax.evaluation.probes.c_sweep import GRID, binary_search

FIRST = [1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6]


@st.composite
def one_peaked(draw, tops=0):
  """97 scores that rise to a peak and fall, by steps of any size; those over
  a ceiling are cut to it, which leaves a plateau.
  """
  peak = draw(st.integers(0, 96))
  steps = draw(
    st.lists(st.floats(1e-3, 100), min_size=97, max_size=97).map(np.array)
  )
  rising = np.cumsum(steps)
  falling = np.cumsum(steps[::-1])[::-1]
  scores = np.concatenate(
    [rising[:peak] - rising[peak], [0], falling[peak + 1 :] - falling[peak]]
  )
  order = np.sort(scores)[::-1]
  return np.minimum(scores, order[draw(st.integers(0, tops))])


class Recorder:
  """Scores from a list, and the C that were asked for."""

  def __init__(self, scores):
    self.scores = dict(zip(GRID, scores, strict=True))
    self.asked = []

  def __call__(self, C):
    self.asked.append(C)
    return self.scores[C]


def test_the_grid_has_96_steps_of_an_eighth_of_a_decade():
  assert len(GRID) == 97
  assert (GRID[0], GRID[-1]) == (1e-6, 1e6)
  np.testing.assert_allclose(np.diff(np.log10(GRID)), 1 / 8)
  assert [C for C in FIRST if C in GRID] == FIRST


@given(one_peaked())
def test_the_search_finds_the_peak_of_the_whole_sweep(scores):
  asked = Recorder(scores)
  result = binary_search(asked)
  assert result.best_C == GRID[int(np.argmax(scores))]
  assert len(asked.asked) <= 15
  assert len(set(asked.asked)) == len(asked.asked)


@given(one_peaked(tops=60))
def test_of_a_plateau_the_search_finds_a_part(scores):
  asked = Recorder(scores)
  result = binary_search(asked)
  assert asked.scores[result.best_C] == scores.max()
  smaller = [C for C, s in result.tried.items() if s == scores.max()]
  assert result.best_C == min(smaller)


@given(st.lists(st.integers(0, 5), min_size=97, max_size=97))
def test_any_score_has_the_same_result_each_time_and_its_best_tried(scores):
  first, second = (
    binary_search(Recorder(scores)),
    binary_search(Recorder(scores)),
  )
  assert first == second
  assert list(first.tried) == sorted(first.tried)
  assert first.tried[first.best_C] == max(first.tried.values())
  for C, score in first.tried.items():
    assert score == scores[GRID.index(C)]


def test_the_search_starts_and_narrows_as_in_the_paper():
  asked = Recorder(-np.abs(np.arange(97) - 51))
  assert binary_search(asked).best_C == GRID[51]
  eighths = [round(8 * (np.log10(C) + 6)) for C in asked.asked]
  assert eighths[:7] == [0, 16, 32, 48, 64, 80, 96]
  assert eighths[7:] == [40, 56, 44, 52, 50, 54, 49, 51]  # 50 and 52 tie


def test_the_ends_of_the_grid_are_not_passed():
  rising = Recorder(np.arange(97))
  assert binary_search(rising).best_C == 1e6
  assert len(rising.asked) == 7 + 4
  assert binary_search(Recorder(-np.arange(97))).best_C == 1e-6


def test_a_probe_that_diverged_stops_the_sweep():
  with pytest.raises(FailureError, match='C=1 is NaN'):
    binary_search(lambda C: float('nan') if C == 1 else 0.5)
