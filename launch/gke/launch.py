"""Trains on GKE's TPU slices, as a JobSet, and follows its log.

usage:
  python launch/gke/launch.py image --image=IMAGE
  python launch/gke/launch.py apply --name=NAME --topology=v5e:16x16
      --image=IMAGE --config=configs/NAME.py --workdir=gs://BUCKET/RUN
      [--config.KEY=VALUE …]
  python launch/gke/launch.py logs|delete --name=NAME

image builds the container and pushes it; apply fills in jobset.yaml and hands
it to the cluster, whose queue starts it; logs follows process 0, through
restarts, until the run has ended; delete gives the machines back. --dry-run
prints the commands and runs nothing.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml
from manifest import CHIPS_PER_MACHINE, Job, fill

ROOT = Path(__file__).parents[2]
POLL_SECONDS = float(os.environ.get('POLL_SECONDS', '10'))


def main() -> None:
  """Reads the command line, and runs the verb."""
  arguments, rest = _parser().parse_known_args()
  train_flags = _train_flags(rest)
  commands = Commands(arguments.dry_run, arguments.namespace)
  if arguments.verb == 'image':
    _need(arguments, 'image')
    build(arguments, commands)
  elif arguments.verb == 'apply':
    _need(arguments, 'name', 'topology', 'image')
    _check_run(train_flags)
    apply(arguments, train_flags, commands)
  elif arguments.verb == 'logs':
    _need(arguments, 'name')
    follow(arguments.name, commands)
  else:
    _need(arguments, 'name')
    commands.kubectl('delete', 'jobset', arguments.name)


class Commands:
  """Runs commands, or prints them where nothing is to be run."""

  def __init__(self, dry_run: bool, namespace: str) -> None:
    self.dry_run = dry_run
    self._namespace = [f'--namespace={namespace}'] if namespace else []

  def run(self, *words: str, given: str | None = None) -> None:
    """Raises SystemExit where the command fails, which says why itself."""
    if self.dry_run:
      print(shlex.join(words), end='\n' if given is None else " <<'END'\n")
      print('' if given is None else f'{given}END\n', end='')
      return
    _find(words[0])
    done = subprocess.run(words, cwd=ROOT, input=given, text=True, check=False)
    if done.returncode:
      fail(f'{words[0]} {words[1]} failed; it says why above.')

  def kubectl(self, *words: str, given: str | None = None) -> None:
    """Runs kubectl in the namespace; see `run`."""
    self.run('kubectl', *words, *self._namespace, given=given)

  def ask(self, *words: str) -> tuple[int, str]:
    """Returns kubectl's exit code, and what it prints on both channels."""
    _find('kubectl')
    done = subprocess.run(
      ['kubectl', *words, *self._namespace],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      check=False,
    )
    return done.returncode, done.stdout.strip()

  def watch(self, *words: str) -> None:
    """Runs kubectl where a failure does not matter."""
    if self.dry_run:
      self.kubectl(*words)
    else:
      subprocess.run(['kubectl', *words, *self._namespace], check=False)


def build(arguments: argparse.Namespace, commands: Commands) -> None:
  """Builds the container of this working tree, and pushes it."""
  commands.run(
    *('docker', 'build', '--file=launch/gke/Dockerfile'),
    # TPU machines are x86, whatever this one is.
    *('--platform=linux/amd64', f'--tag={arguments.image}', '.'),
  )
  commands.run('docker', 'push', arguments.image)


def apply(
  arguments: argparse.Namespace, train_flags: list[str], commands: Commands
) -> None:
  """Hands the JobSet to the cluster."""
  job = Job(
    name=arguments.name,
    topology=arguments.topology,
    image=arguments.image,
    train_flags=train_flags,
    slices=arguments.slices,
    chips_per_machine=arguments.chips_per_machine,
    queue=arguments.queue,
    max_restarts=arguments.max_restarts,
    service_account=arguments.service_account,
    user=arguments.user,
    spot=arguments.spot,
    environment=[_pair(text) for text in arguments.env],
  )
  try:
    jobset = fill(job)
  except ValueError as error:
    fail(str(error), 2)
  text = yaml.safe_dump(jobset, sort_keys=False, width=1000)
  commands.kubectl('apply', '--filename=-', given=text)


def follow(name: str, commands: Commands) -> None:
  """Prints the log of process 0 until the JobSet has ended."""
  selector = ','.join(
    (
      f'jobset.sigs.k8s.io/jobset-name={name}',
      'jobset.sigs.k8s.io/job-index=0',
      'batch.kubernetes.io/job-completion-index=0',
    )
  )
  logs = ('logs', '--follow', '--tail=-1', f'--selector={selector}')
  state = ('get', 'jobset', name, '--output=jsonpath={.status.terminalState}')
  if commands.dry_run:
    commands.kubectl(*logs)
    commands.kubectl(*state)
    return
  while True:
    code, said = commands.ask(*state)
    if code:
      fail(f'the JobSet {name} could not be looked up: {said}')
    if said == 'Failed':
      fail(f'the JobSet {name} failed; kubectl describe jobset {name}')
    if said == 'Completed':
      print(f'{name} has ended.', file=sys.stderr)
      return
    # Fails while there is no pod yet, or its container is being made.
    commands.watch(*logs)
    time.sleep(POLL_SECONDS)


def fail(message: str, code: int = 1) -> None:
  """Prints one line, and exits: 1, it failed; 2, the call was wrong."""
  print(f'error: {message}', file=sys.stderr)
  raise SystemExit(code)


def _find(command: str) -> None:
  if shutil.which(command) is None:
    fail(f'no command {command} on this machine.')


def _need(arguments: argparse.Namespace, *names: str) -> None:
  for name in names:
    if not getattr(arguments, name):
      fail(f'{arguments.verb} needs --{name}=… (see --help).', 2)
  if 'name' in names and not re.fullmatch(
    r'[a-z]([a-z0-9-]{0,38}[a-z0-9])?', arguments.name
  ):
    fail(
      f'--name={arguments.name} must be at most 40 lower-case letters, '
      'digits and hyphens: it becomes part of host names.',
      2,
    )


def _train_flags(words: list[str]) -> list[str]:
  """Returns the flags of `clip-jax train`; anything else is refused."""
  for word in words:
    if not re.match(r'--(config(\.[\w.]+)?|workdir|profile)=.', word):
      fail(f'launch.py does not take {word} (see --help).', 2)
  return words


def _check_run(train_flags: list[str]) -> None:
  given = dict(flag.split('=', 1) for flag in train_flags)
  config = given.get('--config', '')
  path = config.partition(':')[0]
  if not path.startswith('configs/') or not (ROOT / path).is_file():
    fail(f'--config={config} is no file in configs/: the image has those.', 2)
  if not given.get('--workdir', '').startswith('gs://'):
    fail("--workdir must be gs://…: a pod's disk goes with it.", 2)


def _pair(text: str) -> tuple[str, str]:
  name, equals, value = text.partition('=')
  if not name or not equals:
    fail(f'--env={text} must be --env=NAME=VALUE.', 2)
  return name, value


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
    fail(f'{message} (see --help).', 2)


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add('verb', choices=('image', 'apply', 'logs', 'delete'))
  add('--name', help='of the JobSet')
  add('--topology', help='KIND:AxB of v4, v5e, v5p or v6e, as in clip-jax plan')
  add('--slices', type=int, default=1, help='so many of it; sets mesh.slices')
  add('--image', help='REGISTRY/NAME:TAG of the container')
  add('--namespace', default='', help="default: kubectl's")
  add('--queue', default='multislice-queue', help="of Kueue; default: XPK's")
  add('--service-account', default='', help='of Kubernetes, for gs://')
  add('--spot', action='store_true', help='on spot machines')
  add('--max-restarts', type=int, default=10, help='after failures')
  add(
    '--chips-per-machine',
    type=int,
    default=CHIPS_PER_MACHINE,
    help='8 for a v5e:2x4 on one ct5lp-hightpu-8t; else 4',
  )
  add('--user', type=int, help="user id in the container; default: the image's")
  add('--env', action='append', default=[], help='NAME=VALUE; may be repeated')
  add('--dry-run', action='store_true', help='print the commands, run nothing')
  return parser


if __name__ == '__main__':
  try:
    main()
  except KeyboardInterrupt:  # of `logs`: the run goes on
    raise SystemExit(130) from None
