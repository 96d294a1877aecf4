"""Plans a run on a TPU that is not there: does it fit, and how long it takes.

usage:
  clip-jax plan --config=configs/NAME.py[:ARG] [--topology=v5e:16x16]
      [--fit] [--json] [--config.KEY=VALUE …]
  clip-jax plan --config=configs/NAME.py[:ARG] --scaling=SLICE,N*SLICE,…
  clip-jax plan --all

examples:
  clip-jax plan --config=configs/vit_l14.py --topology=v5e:16x16
  clip-jax plan --config=configs/vit_l14.py --topology=v5e:4x4 --fit
  clip-jax plan --config=configs/vit_b32.py --topology=v5p:4x4x4 --json
  clip-jax plan --config=configs/vit_b32.py --topology=v5e:16x16 \\
      --config.mesh.slices=2
  clip-jax plan --config=configs/vit_l14.py --config.data.batch_size=2048 \\
      --scaling=v5p:2x2x4,v5p:4x8x8,4*v5p:4x8x8

The train step of the config is compiled ahead of time, on this machine's CPU,
for every chip of the topology: v4 and v5p have three sides (v5p:4x4x4), v5e
and v6e two (v5e:16x16), and mesh.slices says how many of these there are. No
data and no tokenizer file are needed. Memory, FLOPs and collectives are those
of the compiled program; times are estimates, by two assumptions: all products
at 75 % of the peak, and each by what its shape fills of a matrix unit. With
initialize_from, shapes that the config leaves open are those of that model.
A plan that fits compiles for minutes; one that does not is told in seconds.

Without --topology, a recipe's own is taken. --fit searches for the fastest
micro-batch, remat policies and mesh.fsdp that fit. --scaling plans a list of
topologies, each SLICE or N*SLICE for N slices, with the same pairs on every
chip, and prints a table in Markdown; data.batch_size is that of the first.
--all plans every recipe of configs/ that states a topology, in each of its
stages, and prints a table in Markdown.
"""

import functools
import itertools
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from clip_jax.commands import common_flags, printing
from clip_jax.commands.config_file import (
  config_path,
  define_config,
  parse,
  stated_fields,
)
from clip_jax.errors import UsageError

if TYPE_CHECKING:
  from clip_jax.planning.plan import Plan
  from clip_jax.planning.topology import Topology

__all__ = ['define_flags', 'parse', 'run']


def define_flags(values: flags.FlagValues) -> None:
  """Adds this verb's flags."""
  define_config(values)
  text, switch = flags.DEFINE_string, flags.DEFINE_bool
  text(
    'topology',
    None,
    "chips of one slice, such as v5e:16x16; a recipe's own where left out",
    flag_values=values,
  )
  switch('fit', False, 'search for settings that fit', flag_values=values)
  flags.DEFINE_list(
    'scaling',
    [],
    'topologies to plan one after another, such as v5p:2x2x4,4*v5p:4x8x8',
    flag_values=values,
  )
  switch('all', False, 'a table of all recipes', flag_values=values)
  common_flags.define_json(values)


def run(values: flags.FlagValues, words: list[str]) -> None:
  """Plans, and prints the plan."""
  common_flags.no_words('plan', words)
  if (values.config is None) == (not values.all):
    raise UsageError(
      'plan needs --config=FILE, such as configs/vit_l14.py, or --all, and not '
      'both.'
    )

  from clip_jax.planning.child import check_libtpu

  check_libtpu()
  if values.all:
    _plan_all(values)
    return
  if values.scaling:
    _plan_scaling(values)
    return
  path = config_path(values)
  topology = _topology(values.topology, path, values.config)
  flag: Any = values['config']
  name, config = flag.config_filename, _with_shapes(values)
  if values.fit:
    _fit(name, config, topology, values.json)
    return
  plan = _plan(config, topology)
  if not plan['fits']:
    from clip_jax.planning.fit import suggestions

    plan['suggestions'] = suggestions(plan, config, topology)
  _print(name, plan, values.json)


def _with_shapes(values: flags.FlagValues) -> Any:
  """Returns the config with the shapes of the model that it starts from."""
  if not values.config.initialize_from:
    return values.config
  from clip_jax.training.run import complete_config

  start = complete_config(values.config, stated=stated_fields(values))
  print('\n'.join(start.notes), file=sys.stderr)
  return start.config


def _topology(name: str | None, path: Path, config: Any) -> 'Topology':
  from clip_jax.planning.topology import parse_topology

  name = name or stated_topology(path)
  if not name:
    raise UsageError(
      f'no --topology, and {path} states none: name chips such as v5e:16x16.'
    )
  return parse_topology(name, config.mesh.slices)


def _plan(config: Any, topology: 'Topology') -> 'Plan':
  """Makes the plan, with progress on stderr."""
  from clip_jax.planning.child import measure_in_child
  from clip_jax.planning.plan import make_plan

  with _Waiting(
    f'compiling for {topology.chips:,} chips of {topology} (one to five '
    'minutes)'
  ) as waiting:
    measure = functools.partial(measure_in_child, on_second=waiting.tick)
    return make_plan(config, topology, measure)


class _Waiting:
  """Says on stderr what is waited for and for how long.

  On a terminal it is one line, erased at the end; elsewhere a line a minute.
  """

  def __init__(self, what: str):
    self._what = what
    self._terminal = sys.stderr.isatty()
    self._said = -1  # minutes

  def __enter__(self) -> '_Waiting':
    return self

  def __exit__(self, *exception: object) -> None:
    if self._terminal and self._said >= 0:
      print('\r\033[K', end='', file=sys.stderr, flush=True)

  def tick(self, seconds: float) -> None:
    """Shows the seconds that have passed."""
    minutes, rest = divmod(round(seconds), 60)
    if self._terminal:
      clock = f'{self._what} {minutes}:{rest:02}'
      print(f'\r{clock}', end='', file=sys.stderr, flush=True)
    elif minutes > self._said:
      line = f'... {minutes} min' if minutes else f'{self._what} ...'
      print(line, file=sys.stderr, flush=True)
    self._said = minutes


def _print(name: str, plan: 'Plan', as_json: bool) -> None:
  from clip_jax.planning.plan import describe

  if as_json:
    printing.print_json({'config': name, **plan})
  else:
    print(describe(name, plan))


def _fit(name: str, config: Any, topology: 'Topology', as_json: bool) -> None:
  """Searches, and prints the plan of the winner with the flags for it."""
  from clip_jax.planning import fit
  from clip_jax.planning.plan import verdict

  numbers = itertools.count(1)

  def print_trial(trial: fit.Trial) -> None:
    fields = ' '.join(
      flag.removeprefix('--config.').partition('.')[2]
      for flag in trial.setting.flags
      if not flag.endswith('=')
    )
    line = f'try {next(numbers)}: {fields}: {verdict(trial.plan)}'
    print(line, file=sys.stderr, flush=True)

  trials = fit.search(
    config, topology, lambda changed: _plan(changed, topology), print_trial
  )
  _print(name, fit.plan_of_trials(trials), as_json)


def _plan_all(values: flags.FlagValues) -> None:
  """Prints a row of Markdown for each recipe as soon as it is known."""
  from clip_jax.commands.config_file import read_config
  from clip_jax.planning.plan import TABLE_HEAD, table_row

  if values.topology or values.fit or values.scaling:
    raise UsageError(
      '--all cannot be combined with --topology, --fit or --scaling.'
    )
  plans = []
  if not values.json:
    print(TABLE_HEAD, flush=True)
  for path, recipe in recipes_in(Path('configs')):
    config = read_config(recipe)
    plan = _plan(config, _topology(None, path, config))
    plans.append({'config': recipe, **plan})
    if not values.json:
      print(table_row(recipe, plan), flush=True)
  if values.json:
    printing.print_json(plans)


def _plan_scaling(values: flags.FlagValues) -> None:
  """Prints a row of Markdown for each topology as soon as it is known."""
  from clip_jax.planning import scaling

  if values.topology or values.fit:
    raise UsageError('--scaling cannot be combined with --topology or --fit.')
  plans: list[Plan] = []
  for config, topology in scaling.sizes(_with_shapes(values), values.scaling):
    plans.append(_plan(config, topology))
    if not values.json:
      head = f'{scaling.TABLE_HEAD}\n' if len(plans) == 1 else ''
      print(head + scaling.table_row(plans[-1], plans[0]), flush=True)
  if values.json:
    printing.print_json(plans)


def stated_topology(path: Path) -> str | None:
  """Returns `TOPOLOGY` of a config file, or None where it states none.

  Raises:
    UsageError: the file cannot be run.
  """
  return _globals_of(path).get('TOPOLOGY')


def _globals_of(path: Path) -> dict[str, Any]:
  """Returns what a config file defines."""
  root = str(path.resolve().parent.parent)
  sys.path.insert(0, root)
  try:
    return runpy.run_path(str(path))
  except Exception as error:
    raise UsageError(f'config file {path} cannot be run: {error}') from error
  finally:
    sys.path.remove(root)


def recipes_in(folder: Path) -> list[tuple[Path, str]]:
  """Returns the files of a folder that state a topology, by name.

  With each comes what --config takes: the file, or FILE:ARG for each of the
  `STAGES` that it has.

  Raises:
    UsageError: there is none, or one cannot be run.
  """
  recipes = []
  for path in sorted(folder.glob('*.py')):
    if _states(path):
      stages = _globals_of(path).get('STAGES')
      words = [f'{path}:{stage}' for stage in stages] if stages else [str(path)]
      recipes += [(path, word) for word in words]
  if not recipes:
    raise UsageError(
      f'no recipe in {folder}/ states its TOPOLOGY: run this where configs/ is.'
    )
  return recipes


def _states(path: Path) -> bool:
  lines = path.read_text('utf-8').splitlines()
  return any(line.startswith('TOPOLOGY = ') for line in lines)
