"""What the pages of the project say: links, commands and code hold."""

import ast
import configparser
import functools
import importlib
import pathlib
import re
import shlex
import urllib.parse

import pytest
from absl import flags

from clip_jax.__main__ import VERBS, find_command
from configs import base

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(
  path
  for part in ('.', 'clip_jax/**', 'configs', 'launch')
  for path in ROOT.glob(f'{part}/README.md')
)
FRONT = ROOT / 'README.md'
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / 'setup.cfg')
EXTRAS = SETUP['options.extras_require']


def name_of(page):
  return str(page.relative_to(ROOT))


def blocks(page, language):
  """The code blocks of a page in a language; '' is a block without one."""
  parts = page.read_text().split('```')[1::2]
  for part in parts:
    first, _, code = part.partition('\n')
    if first.strip() == language:
      yield code


def links(page):
  """The link targets of a page outside of its code blocks."""
  text = ''.join(page.read_text().split('```')[::2])
  return re.findall(r'\]\(([^)\s]+)\)', text)


@functools.cache
def anchors(page):
  """The fragments that the headings of a page can be reached by."""
  text = ''.join(page.read_text().split('```')[::2])
  headings = re.findall(r'^#+ (.*)$', text, re.MULTILINE)
  return {
    re.sub(r'[^\w\- ]', '', heading.lower()).strip().replace(' ', '-')
    for heading in headings
  }


def target_of(page, link):
  """The file that a link of a page leads to, and its fragment."""
  path, _, fragment = urllib.parse.unquote(link).partition('#')
  return (page.parent / path).resolve() if path else page, fragment


def commands(page):
  """The clip-jax commands of a page, as lists of words."""
  for code in blocks(page, ''):
    for line in code.replace('\\\n', ' ').splitlines():
      words = shlex.split(line, comments=True)
      for i, word in enumerate(words):
        if word.endswith('clip-jax') and len(words) > i + 1:
          own = words[i + 1 :]
          yield own[: own.index('>')] if '>' in own else own


def short_links(page):
  return [link for link in links(page) if not link.startswith('http')]


@pytest.mark.parametrize(
  ('page', 'link'),
  [(page, link) for page in PAGES for link in short_links(page)],
  ids=lambda value: (
    name_of(value) if isinstance(value, pathlib.Path) else value
  ),
)
def test_links_lead_somewhere(page, link):
  target, fragment = target_of(page, link)
  assert target.exists()
  if fragment:
    assert fragment in anchors(target)


@pytest.mark.parametrize(
  ('page', 'words'),
  [(page, words) for page in PAGES for words in commands(page)],
  ids=lambda value: (
    name_of(value) if isinstance(value, pathlib.Path) else ' '.join(value)
  ),
)
def test_commands_have_verbs_flags_and_fields_that_exist(page, words):
  verb, *rest = words
  assert verb in VERBS
  values = flags.FlagValues()
  find_command(verb, rest)[1].define_flags(values)
  config = base.get_config()
  for word in rest:
    if not word.startswith('--'):
      continue
    flag = word[2:].partition('=')[0]
    if flag.startswith('config.'):
      *sections, field = flag.split('.')[1:]
      assert field in functools.reduce(getattr, sections, config), flag
    elif flag != 'help':
      assert flag.replace('-', '_') in values, flag
    if flag == 'config' and '=configs/' in word:
      path, _, _ = word.partition('=')[2].partition(':')  # of an argument
      assert (ROOT / path).exists()


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_python_blocks_import_what_exists(page):
  for code in blocks(page, 'python'):
    for node in ast.walk(ast.parse(code)):
      if isinstance(node, ast.ImportFrom):
        module = importlib.import_module(str(node.module))
        for alias in node.names:
          if not hasattr(module, alias.name):
            importlib.import_module(f'{node.module}.{alias.name}')
      elif isinstance(node, ast.Import):
        for alias in node.names:
          importlib.import_module(alias.name)


def test_paths_named_as_code_exist():
  missing = []
  for page in PAGES:
    text = ''.join(page.read_text().split('```')[::2])
    for path in re.findall(
      r'`((?:clip_jax|configs|launch|tests)/[\w/.]+)`', text
    ):
      if not (ROOT / path).exists():
        missing.append(f'{name_of(page)}: {path}')
  assert not missing


def test_nobody_is_told_to_install_the_other_project_called_clip_jax():
  """The distribution clip-jax on the package index is somebody else's."""
  for path in [*PAGES, *(ROOT / 'clip_jax').rglob('*.py')]:
    text = path.read_text()
    assert not re.search(r'pip install ["\']?clip[-_]jax', text), path
    for extra in re.findall(r'pip install "\.\[(\w+)\]"', text):
      assert extra in EXTRAS, (path, extra)


def test_the_front_page_begins_with_the_two_commands():
  assert list(blocks(FRONT, ''))[:2] == [
    'bash launch/local.sh\n',
    'bash launch/test.sh\n',
  ]


def test_the_front_page_is_short():
  assert len(FRONT.read_text().split()) < 850


def test_every_page_is_two_clicks_from_the_front_page():
  reached = {FRONT}
  for _ in range(2):
    reached |= {
      target_of(page, link)[0]
      for page in reached
      if page.suffix == '.md' and page.exists()
      for link in short_links(page)
    }
  # A folder's link shows its README.md.
  reached |= {path / 'README.md' for path in reached}
  assert {name_of(page) for page in PAGES if page not in reached} == set()
