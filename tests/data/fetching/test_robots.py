import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.data.fetching.robots import Robots, disallowing_directive

TEXT = """\ufeff# a comment
User-agent: *
Disallow: /private/   # more
Allow: /private/open/
Disallow: /*.gif$
Disallow: /a*b*c
Disallow:

User-Agent: Clip-JAX/2.0
User-agent: other
Disallow: /ours
Sitemap: http://x/y
Allow: /

user-agent: clip-jax
disallow: /also
"""


@pytest.mark.parametrize(
  ('path', 'allowed'),
  [
    ('/', True), ('', True), ('/private', True), ('/private/x', False),
    ('/private/open/x', True), ('/x.gif', False), ('/x.gif?y', True),
    ('/a1b2c3', False), ('/acb', True), ('/robots.txt', True),
    ('/%70rivate/x', False), ('/private/x?y=1', False),
  ],
)  # fmt: skip
def test_rules_for_all(path, allowed):
  assert Robots(TEXT, 'somebody').allows(f'http://x{path}') == allowed


@pytest.mark.parametrize(
  ('path', 'allowed'),
  [('/ours/x', False), ('/also', False), ('/private/x', True), ('/x', True)],
)
def test_our_own_groups_are_joined_and_hold_instead(path, allowed):
  assert Robots(TEXT, 'clip-jax').allows(f'http://x{path}') == allowed


def test_no_rules_allow_everything():
  for text in ('', '<html>no</html>', 'Disallow: /', 'User-agent: *'):
    assert Robots(text, 'a').allows('http://x/y')


@given(st.text(), st.text(alphabet='/*$ab%é'), st.text(alphabet='/ab%é?'))
def test_any_text_parses(text, pattern, path):
  Robots(text, 'a').allows('http://x/y')
  robots = Robots(f'User-agent: *\nDisallow: {pattern}', 'a')
  robots.allows(f'http://x/{path}')


def test_hostile_patterns_take_linear_time():
  pattern = '/' + '*a' * 100_000 + '$'
  robots = Robots(f'User-agent: *\nDisallow: {pattern}', 'a')
  started = time.process_time()
  assert robots.allows('http://x/' + 'a' * 50_000 + 'b')
  assert time.process_time() - started < 5


@pytest.mark.parametrize(
  ('headers', 'directive'),
  [
    ([], ''), (['noarchive'], ''), (['noai'], 'noai'),
    (['nofollow, NoImageAI'], 'noimageai'), (['all', 'noindex'], 'noindex'),
    (['otherbot: noai'], ''), (['clip-jax: noai'], 'noai'),
    (['Clip-Jax: nofollow, noimageindex'], 'noimageindex'),
    (['otherbot: noai, clip-jax: nofollow'], ''), (['*: noai'], 'noai'),
    (['unavailable_after: 25 Jun 2010 15:00:00 PST, noai'], 'noai'),
    (['max-image-preview: large, noindex'], 'noindex'), (['none'], 'none'),
    (['noaiming'], ''), ([':'], ''), ([''], ''),
  ],
)  # fmt: skip
def test_the_header_of_an_image(headers, directive):
  assert disallowing_directive(headers, 'clip-jax') == directive
