"""The page of the suite, read back as a browser reads it."""

import json
from pathlib import Path

import pytest

from clip_jax.evaluation.suite import evaluate_suite, make_plan
from clip_jax.report.suite import fetch_images, render, write_page
from tests.evaluation.suite.fakes import (
  SETTING,
  TABLE,
  TASKS,
  FakeSuite,
  absence,
)
from tests.report.html_page import Page

SECTIONS = (
  'headline',
  'failed',
  'summary',
  'prompts',
  'probes',
  'calibration',
  'confused',
  'retrieval',
  'robustness',
  'overlap',
  'bias',
  'absent',
  'settings',
  'environment',
  'reproduce',
)


@pytest.fixture(scope='module')
def evaluated(tmp_path_factory):
  fake = FakeSuite(
    tmp_path_factory.mktemp('suite'),
    {'oxford_pets few_shot': ValueError('<shapes>')},
  )
  plan = make_plan(
    TABLE, TASKS, absence, root=Path('/data'), training_is_known=True
  )
  collected = evaluate_suite(fake.suite, plan, SETTING, fake.say)
  write_page(fake.folder / 'report.html', collected, fake.suite.open)
  return fake.folder


@pytest.fixture(scope='module')
def collected(evaluated):
  return json.loads((evaluated / 'results.json').read_text())


@pytest.fixture(scope='module')
def page(evaluated):
  return Page((evaluated / 'report.html').read_text())


def test_every_section_is_there_in_order(page):
  ids = [attrs.get('id') for _, attrs in page.elements]
  assert [x for x in ids if x in SECTIONS] == list(SECTIONS)


def test_every_figure_of_the_paper_is_drawn_with_a_caption(page):
  figures = [attrs for tag, attrs in page.elements if tag == 'svg']
  # 4, 5, 6, 7, three reliability diagrams, 13, 17 and two designs.
  assert len(figures) == 11
  for words in (
    'As figure 4', 'As figure 5', 'As figure 6', 'As figure 7',
    'As figures 13 to 15', 'As figure 17', 'As tables 6 and 7',
    'From zero_shot, reliability',
  ):  # fmt: skip
    assert words in page.text(' ')
    assert any(words in (figure['aria-label'] or '') for figure in figures)


def test_ids_of_figures_are_their_own(page):
  ids = [attrs['id'] for _, attrs in page.elements if attrs.get('id')]
  uses = [attrs['href'] for tag, attrs in page.elements if tag == 'use']
  assert uses and len(ids) == len(set(ids))
  assert all(use.removeprefix('#') in ids for use in uses)


def test_nothing_is_asked_of_another_machine(page):
  for tag, attrs in page.elements:
    assert tag not in ('script', 'link', 'iframe')
    for name in ('src', 'href', 'xlink:href', 'srcset'):
      value = attrs.get(name)
      assert value is None or value.startswith(('data:', '#'))
    assert 'url(http' not in (attrs.get('style') or '')


def test_numbers_of_the_paper_stand_beside_with_their_doubt(page):
  assert '84.4 ?' in page.text(' ')
  titles = [attrs.get('title') or '' for _, attrs in page.elements]
  assert any('table 11' in x and 'not confirmed' in x for x in titles)


def test_chance_stands_beside_accuracies(page):
  # The summary's row, the overlap's, and two recalls of retrieval.
  assert 'Data set Chance Zero-shot' in page.text(' ')
  assert page.text(' ').count('17.3') >= 4


def test_failures_and_absences_say_why(page):
  assert 'ValueError: <shapes>' in page.text(' ')
  assert 'folder:/data/mnist#test' in page.text(' ')
  assert 'not prepared' in page.text(' ')
  assert '1 failed' in page.text(' ')


def test_the_command_and_the_model_are_shown(page):
  assert SETTING.command in page.text(' ')
  assert 'runs/<model>' in page.text(' ')
  assert 'Pets <b>' in page.text(' ')
  assert 'Groups are labels.' in page.text(' ')
  assert 'dtype float32' in page.text(
    ' '
  ) and 'examples_per_class 1, 2, 4, 8, 16' in page.text(' ')


def test_confusions_have_images_of_both_names(page):
  images = [attrs for tag, attrs in page.elements if tag == 'img']
  assert {x['alt'] for x in images} >= {'cat', 'dog', 'image/0'}


def test_what_cannot_be_opened_again_leaves_gaps(collected):
  def refuse(name):
    raise OSError(name)

  assert fetch_images(collected, refuse) == {}
  assert not [
    tag for tag, _ in Page(render(collected, {})).elements if tag == 'img'
  ]


def test_a_suite_of_one_evaluation_has_a_page(collected):
  for result in collected['results']:
    one = {**collected, 'results': [result], 'absent': []}
    assert Page(render(one, {})).elements
