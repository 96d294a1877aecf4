"""What every page of ours is made of."""

import jinja2
import pytest

from clip_jax.report.page import environment


def rendered(folder, text, **values):
  (folder / 'page.html').write_text(text)
  return environment(folder).get_template('page.html').render(**values)


def test_a_page_starts_with_the_common_head_and_colours(tmp_path):
  page = rendered(
    tmp_path,
    "{% include 'head.html' %}\n<style>\n{% include 'palette.css' %}\n</style>",
  )
  assert page.startswith('<!doctype html>')
  assert "default-src 'none'" in page  # nothing is fetched
  assert '--paper:' in page
  assert 'prefers-color-scheme: dark' in page


def test_values_are_escaped(tmp_path):
  assert rendered(tmp_path, '{{ x }}', x='<b>') == '&lt;b&gt;'


def test_a_value_that_was_not_given_is_an_error(tmp_path):
  with pytest.raises(jinja2.UndefinedError):
    rendered(tmp_path, '{{ x }}')
