"""Runs `clip-jax VERB …`.

The first word picks a file of `commands/`, which defines its flags and runs; of
a verb with actions, such as `data`, the second word does. Only that file is
imported, so that help answers at once.
"""

import difflib
import errno
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from types import ModuleType

from absl import flags

import clip_jax
from clip_jax.commands import common_flags, printing
from clip_jax.errors import FailureError, UsageError, one_line
from clip_jax.parallel.devices import has_accelerator

VERBS = {
  'train': 'train a model; run again with the same workdir, resume',
  'study': 'train variants of a recipe, and draw how they compare',
  'eval': 'evaluate a model: zero-shot classification, retrieval',
  'classify': 'label images with names of your choice',
  'embed': 'write the embeddings of images or texts to a file',
  'search': 'find images or texts among what embed wrote',
  'convert': 'write a model in the layout of transformers or open_clip',
  'interpolate': 'average the weights of models: WiSE-FT, model soups',
  'export': 'write programs and weights that run with JAX alone, or as ONNX',
  'plan': 'compile for a TPU that is not there: does it fit, how fast',
  'info': "a model's or preset's parameters, FLOPs and shapes",
  'data': 'fetch, build, index, inspect and curate data sets; find copies',
  'bench': 'measure this machine',
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command line; the exit code is 0 done, 1 failed, 2 wrong call."""
  argv = sys.argv[1:] if argv is None else list(argv)
  printing.print_everything(sys.stdout, sys.stderr)
  # Pillow warns of damaged metadata, which is read as far as it goes.
  warnings.filterwarnings('ignore', module=r'PIL\.')
  if not argv:
    print(_overview(), file=sys.stderr)
    return 2
  debug = '--debug' in argv
  _leave_libtpu_alone()
  try:
    return _run(argv[0], argv[1:])
  except KeyboardInterrupt:
    print('error: interrupted.', file=sys.stderr)
    return 130
  except BrokenPipeError:  # the reader of our output has gone, as with `head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except Exception as error:
    if debug:
      raise
    message, code = _explain(error)
    print(f'error: {message}', file=sys.stderr)
    return code


def _run(verb: str, argv: list[str]) -> int:
  if verb in ('--help', '-h', 'help', '--helpfull'):
    print(_overview())
    return 0
  if verb == '--version':
    print(f'clip-jax {clip_jax.__version__}')
    return 0
  if verb not in VERBS:
    near = difflib.get_close_matches(verb, VERBS, n=1)
    raise UsageError(
      f'no verb {verb!r}: one of {", ".join(VERBS)}'
      + (f'; the nearest is {near[0]}.' if near else '.')
    )
  name, command, argv = find_command(verb, argv)
  values = flags.FlagValues()
  flags.DEFINE_bool('help', False, 'show this help', flag_values=values)
  flags.DEFINE_bool(
    'debug', False, 'show the traceback of an error', flag_values=values
  )
  command.define_flags(values)
  if _asks_for_help(argv):
    print(_help(command, values))
    return 0
  try:
    parse = getattr(command, 'parse', flags.FlagValues.__call__)
    words = parse(values, [f'clip-jax {name}', *map(_underscored, argv)])[1:]
  except flags.Error as error:
    raise UsageError(
      f'{_flag_fault(error)} (see clip-jax {name} --help)'
    ) from error
  common_flags.limit_images(values)
  return command.run(values, words) or 0


def find_command(
  verb: str, argv: list[str]
) -> tuple[str, ModuleType, list[str]]:
  """Returns the name of a command, its module, and the words that it is given.

  Raises:
    UsageError: the verb has actions, and none of them is named.
  """
  command = importlib.import_module(f'clip_jax.commands.{verb}')
  actions = getattr(command, 'ACTIONS', None)
  if actions is None:
    return verb, command, argv
  action = next((word for word in argv if not word.startswith('-')), None)
  if action is None and _asks_for_help(argv):
    return verb, command, argv
  if action is None or action not in actions:
    asked = f'{verb} {action!r}?' if action else f'{verb} what?'
    raise UsageError(f'{asked} One of {", ".join(actions)}.')
  rest = list(argv)
  rest.remove(action)
  command = importlib.import_module(f'clip_jax.commands.{verb}_{action}')
  return f'{verb} {action}', command, rest


def _asks_for_help(argv: list[str]) -> bool:
  # `--help=x` asks for help, too: it is no flag that takes a value.
  asked = {word.partition('=')[0] for word in argv}
  return bool(asked & {'--help', '-h', '-help', '--helpfull'})


def _flag_fault(error: flags.Error) -> str:
  """Returns what was wrong with the flags, in our words for on/off flags.

  The text of the library shows a tuple for these.
  """
  cause = error.__context__
  if isinstance(cause, ValueError) and len(cause.args) > 1:
    flag = one_line(str(error)).partition(':')[0]
    return f'{flag}: this flag is on or off, so it takes true or false'
  return one_line(str(error))


def _leave_libtpu_alone() -> None:
  """Makes JAX use the CPU where there is no accelerator, but libtpu.

  libtpu, which is installed for `plan`, would print pages of errors when JAX
  looks for a TPU. What JAX_PLATFORMS says is obeyed.
  """
  if 'JAX_PLATFORMS' in os.environ or not importlib.util.find_spec('libtpu'):
    return
  if not has_accelerator():
    os.environ['JAX_PLATFORMS'] = 'cpu'


def _underscored(word: str) -> str:
  """Returns a flag as it is defined: '--embed_dim=512' of '--embed-dim=512'."""
  if not word.startswith('--'):
    return word
  name, equals, value = word.partition('=')
  return f'--{name[2:].replace("-", "_")}{equals}{value}'


def _explain(error: Exception) -> tuple[str, int]:
  """Returns one line about an error, and the exit code."""
  if isinstance(error, UsageError):
    return one_line(str(error)), 2
  if isinstance(error, FailureError):
    return one_line(str(error)), 1
  if isinstance(error, OSError):
    if error.errno == errno.ENOSPC:
      return f'the disk is full: {error.filename or one_line(str(error))}.', 1
    where = f'{error.filename}: ' if error.filename else ''
    return f'{where}{(error.strerror or one_line(str(error))).lower()}.', 1
  return (
    f'{type(error).__name__}: {one_line(str(error))} '
    '(--debug shows where; this is worth reporting)'
  ), 1


def _overview() -> str:
  return (
    'clip-jax: CLIP in JAX, from image-text pairs to a model in use.\n\n'
    f'usage: clip-jax VERB [--flag=value …]\n\n{_table(VERBS)}\n\n'
    'clip-jax VERB --help shows its flags, with examples; clip-jax --version '
    'says which version this is.\n'
    'Results go to stdout, progress to stderr; --json prints one JSON '
    'document.'
  )


def _help(command: ModuleType, values: flags.FlagValues) -> str:
  lines = [(command.__doc__ or '').strip(), '']
  if hasattr(command, 'ACTIONS'):
    lines += ['actions, each with a --help of its own:']
    lines += [_table(command.ACTIONS), '']
  lines += ['flags:']
  width = max(map(len, values))
  for name in sorted(values):
    flag = values[name]
    what = flag.help.splitlines()[0].rstrip(';')
    lines.append(f'  --{name:<{width}} {what}{_default(flag)}')
  return '\n'.join(lines)


def _table(rows: Mapping[str, str]) -> str:
  width = max(map(len, rows))
  return '\n'.join(f'  {name:<{width}}  {what}' for name, what in rows.items())


def _default(flag: flags.Flag) -> str:
  if flag.default in (None, False, '', []):
    return ''
  items = flag.default if isinstance(flag.default, list) else [flag.default]
  return f' [{", ".join(map(str, items))}]'


if __name__ == '__main__':
  sys.exit(main())
