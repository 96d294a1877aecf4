"""Figures as they stand in a page."""

import xml.etree.ElementTree as ET

import pytest

from clip_jax.report.charts import ACCENT, new_axes, new_bars, to_svg


def _figure():
  figure, axes = new_bars(['a <b>', 'c'])
  axes.barh([0, 1], [1, 2], color=ACCENT)
  axes.plot([1, 2], [0, 1], 'o', gid='values')
  return figure


def test_a_figure_takes_the_pages_colours_and_refers_to_nothing():
  text = to_svg(_figure(), 'figure', 'what it shows')
  assert 'var(--ink)' in text and 'rgb(var(--accent))' in text
  assert 'var(--sans)' in text and 'DejaVu' not in text
  assert 'http' not in text and 'xmlns' not in text and '<style' not in text
  assert 'aria-label="what it shows"' in text and 'role="img"' in text


def test_the_same_figure_gives_the_same_bytes():
  assert to_svg(_figure(), 'figure', '') == to_svg(_figure(), 'figure', '')


def test_text_stays_text_and_is_escaped():
  text = to_svg(_figure(), 'figure', '"x" & <y>')
  assert '>a &lt;b&gt;</text>' in text
  assert ET.fromstring(text).get('aria-label') == '"x" & <y>'


def test_two_figures_of_a_page_share_no_id():
  ids = [
    {x.get('id') for x in ET.fromstring(to_svg(_figure(), name, '')).iter()}
    for name in ('one', 'two')
  ]
  assert ids[0] & ids[1] == {None}


def test_every_marker_has_its_tooltip():
  texts = {'values': ['1 & 2', 'three']}
  drawing = ET.fromstring(to_svg(_figure(), 'figure', '', texts))
  assert [x.text for x in drawing.iter('title')] == texts['values']
  with pytest.raises(ValueError):
    to_svg(_figure(), 'figure', '', {'values': ['too few']})


def test_a_figure_without_lines_is_empty_axes():
  figure, _ = new_axes()
  assert to_svg(figure, 'empty', 'nothing').startswith('<svg viewBox=')
