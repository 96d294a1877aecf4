"""What every page of ours is made of."""

import jinja2
import pytest

from clip_jax.report import page


def _rendered(body, **values):
  text = "{% extends 'base.html' %}{% block main %}" + body + '{% endblock %}'
  return page.TEMPLATES.from_string(text).render(**values)


def test_a_page_loads_nothing_and_is_light_and_dark():
  text = _rendered('')
  assert text.startswith('<!doctype html>')
  assert "default-src 'none'" in text  # nothing is fetched
  assert '--paper:' in text
  assert 'prefers-color-scheme: dark' in text


def test_values_are_escaped():
  assert '&lt;b&gt;' in _rendered('{{ x }}', x='<b>')


def test_a_value_that_was_not_given_is_an_error():
  with pytest.raises(jinja2.UndefinedError):
    _rendered('{{ x }}')


def test_units_are_small_and_stay_with_their_number():
  text = _rendered('{{ x | small_units }}', x='12 min <i>')
  assert '12\N{NO-BREAK SPACE}<small>min</small>' in text
  assert '<small>&lt;i&gt;</small>' in text


def test_a_file_is_replaced_as_a_whole(tmp_path):
  path = tmp_path / 'page.html'
  path.write_text('old')
  with pytest.raises(jinja2.UndefinedError):
    page.write(path, 'search.html')
  assert path.read_text() == 'old'
  values = {'heading': '\udcff', 'names': [], 'note': '', 'results': []}
  page.write(path, 'search.html', title='', quoted=False, **values)
  assert path.read_text().startswith('<!doctype html>')
  assert [x.name for x in tmp_path.iterdir()] == ['page.html']


def test_numbers_as_words():
  assert page.percent(0.0001) == '< 0.1 %' and page.percent(0) == '0.0 %'
  assert page.points(-0.012) == '\N{MINUS SIGN}1.2'
  assert page.cosine(-0.001) == '0.00'
  assert page.short_count(151_277_313) == '151 M'
  assert page.short_count(1_712_345) == '1.71 M'


def test_the_environment_names_the_machine_and_versions():
  facts = page.environment(('jax', 'no-such-package'))
  assert {'devices', 'CPU cores', 'Python', 'jax'} <= facts.keys()
  assert 'no-such-package' not in facts
