"""Imports keep the core apart from the rest, and follow the order of parts."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'clip_jax'

# A part may import what stands in its own line, or above.
ORDER = (
  {'errors', 'files', 'progress', 'trees'},
  {'data', 'tokenizers'},
  {'models'},
  {'objectives', 'parallel'},
  {'checkpoints', 'interop'},
  {'inference'},
  {'evaluation'},
  {'training'},
  {'report'},
  {'planning', 'benchmarks'},
  {'commands', '__main__'},
)
RANK = {part: rank for rank, parts in enumerate(ORDER) for part in parts}

# Called without outputs, `train` writes a report all the same.
EXCEPTIONS = {('clip_jax.training.writers', 'clip_jax.report.training')}


@functools.cache
def modules():
  """The source of each module by its name, without the root's."""
  result = {}
  for path in PACKAGE.rglob('*.py'):
    name = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    result[name.removesuffix('.__init__')] = path.read_text()
  # The root names its public objects, which it loads when they are asked for.
  del result['clip_jax']
  return result


@functools.cache
def imports():
  """What each module imports: anywhere in it, and also for types only."""
  return {name: imported(source) - {name} for name, source in modules().items()}


def imported(source):
  """The modules that a source text imports."""
  names = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.ImportFrom) and node.module:
      for alias in node.names:
        full = f'{node.module}.{alias.name}'
        names.add(full if full in modules() else node.module)
    elif isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
  return {name for name in names if name in modules()}


def part(module):
  return module.split('.')[1]


def loaded_by(module):
  """The modules of the package that an import loads, in a fresh process."""
  code = f'import {module}, sys; print(*sys.modules)'
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  names = done.stdout.split()
  return {name for name in names if name.split('.')[0] == 'clip_jax'}


def test_the_training_loop_loads_the_core_and_little_else():
  names = loaded_by('clip_jax.training.loop')
  assert len(names) <= 60, sorted(names)
  apart = re.compile(
    r'clip_jax\.(interop|inference|evaluation|report|planning|benchmarks|'
    r'commands)\b'
  )
  assert not [name for name in names if apart.match(name)]


def test_loading_a_model_opens_no_reader_before_it_is_needed():
  names = loaded_by('clip_jax.inference.loading')
  readers = re.compile(
    r'clip_jax\.(interop\.(layouts|openai|torch_\w+|weight_files|published_model)'
    r'|inference\.export\w*|checkpoints\.\w+)$'
  )
  assert not [name for name in names if readers.match(name)]


def test_every_part_has_its_place_in_the_order():
  assert {part(name) for name in modules()} == set(RANK)


@pytest.mark.parametrize('name', sorted(RANK))
def test_a_part_imports_only_what_stands_before_it(name):
  back = [
    (module, other)
    for module, others in imports().items()
    for other in others
    if part(module) == name and RANK[part(other)] > RANK[name]
  ]
  assert set(back) <= EXCEPTIONS


def test_no_import_circle_exists():
  remaining = {
    module: {other for other in others if (module, other) not in EXCEPTIONS}
    for module, others in imports().items()
  }
  while True:
    leaves = {module for module, others in remaining.items() if not others}
    if not leaves:
      break
    remaining = {
      module: others - leaves
      for module, others in remaining.items()
      if module not in leaves
    }
  assert not remaining, f'in a circle, or before one: {sorted(remaining)}'


def reading_list() -> list[tuple[str, str]]:
  """Returns the files of the reading list, and how many lines it says."""
  page = (PACKAGE / 'README.md').read_text()
  return re.findall(r'^\| \[([\w/]+\.py)\]\(\1\).*\| (\d+) \|$', page, re.M)


def test_each_file_of_the_reading_list_has_a_test_file_of_its_name():
  tests = [
    ROOT / 'tests' / Path(name).with_name(f'test_{Path(name).name}')
    for name, _ in reading_list()
  ]
  missing = [str(path) for path in tests if not path.is_file()]
  assert not missing


def test_the_reading_list_is_short_and_says_how_long_its_files_are():
  rows = reading_list()
  assert 12 <= len(rows) <= 15
  lengths = {
    name: len((PACKAGE / name).read_text().splitlines()) for name, _ in rows
  }
  assert sum(lengths.values()) <= 3000
  # Files change by a few lines more often than this page does.
  assert all(abs(lengths[name] - int(said)) <= 30 for name, said in rows)
