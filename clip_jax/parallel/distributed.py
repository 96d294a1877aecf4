"""One run on many hosts: who takes part, joining them, and leaving them.

Every host runs the same command. Where it finds itself among others is read
from the environment: JAX_COORDINATOR_ADDRESS (host:port of process 0),
JAX_NUM_PROCESSES and JAX_PROCESS_ID, or what JAX's own detection knows of Cloud
TPU, GKE, Slurm, Kubernetes and Open MPI. What is set wins over what is found.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax._src import distributed as jax_distributed
from jax._src.clusters import ClusterEnv  # its answers have no public name
from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]
from jax.experimental import multihost_utils

from clip_jax.errors import FailureError, UsageError
from clip_jax.parallel import failures
from clip_jax.parallel.guarded import guarded

ADDRESS, COUNT, INDEX = (
  'JAX_COORDINATOR_ADDRESS',
  'JAX_NUM_PROCESSES',
  'JAX_PROCESS_ID',
)

_START_SECONDS = 300  # machines of one job do not all start at once
_MEETING_SECONDS = 3600  # while the first one prepares something


@dataclasses.dataclass(frozen=True)
class Place:
  """Where this process stands among those of the run."""

  address: str  # host:port of process 0
  count: int
  index: int
  local_devices: Sequence[int] | None = None  # None: all of the host's


def find_place() -> Place | None:
  """This process's place, or None where it is alone.

  Raises:
    UsageError: a variable is not what it should be, or one is missing.
  """
  address = os.environ.get(ADDRESS)
  count, index = _number(COUNT), _number(INDEX)
  if count == 1:
    return None
  try:
    address, count, index, devices = (
      ClusterEnv.auto_detect_unset_distributed_params(
        address, count, index, None, None, _START_SECONDS
      )
    )
  except Exception as error:  # of a metadata server, of a cluster's API
    raise FailureError(
      f"the cluster's description cannot be read ({error}): set {ADDRESS}, "
      f'{COUNT} and {INDEX}, or {COUNT}=1 for a run of this process alone.'
    ) from error
  found = {ADDRESS: address, COUNT: count, INDEX: index}
  missing = [name for name, value in found.items() if value is None]
  if len(missing) == len(found) or count == 1:
    return None
  if address is None or count is None or index is None:
    said = ', '.join(f'{k}={v}' for k, v in found.items() if v is not None)
    raise UsageError(
      f'{said} without {" and ".join(missing)}: a run of several processes '
      f'needs all three (or {COUNT}=1).'
    )
  _check(address, count, index)
  return Place(address, count, index, devices)


def _number(name: str) -> int | None:
  text = os.environ.get(name)
  if text is None:
    return None
  if not text.isdecimal():
    raise UsageError(f'{name}={text!r} must be a whole number.')
  return int(text)


def _check(address: str, count: int, index: int) -> None:
  host, _, port = address.rpartition(':')
  if not host or not port.isdecimal():
    raise UsageError(
      f'{ADDRESS}={address!r} must be host:port of process 0, such as '
      '10.0.0.1:8476.'
    )
  if not 0 <= index < count:
    raise UsageError(
      f'{INDEX}={index} of {COUNT}={count}: processes are numbered from 0 to '
      f'{max(count - 1, 0)}.'
    )


AGAIN = 'Run the same command again in all of them.'
GO_ON = f'{AGAIN[:-1]}: it goes on from the newest checkpoint.'


@contextlib.contextmanager
def joined(place: Place | None, advice: str = AGAIN) -> Iterator[None]:
  """The processes as one JAX program, for as long as all of them work.

  Call it before a device is touched, and while there is one thread only: the
  work goes on in a child process (see guarded.py). All end together. A process
  that fails tells the others (see failures.py) and leaves at once, instead of
  waiting for them to end as JAX does.

  Args:
    place: from `find_place`; None does nothing.
    advice: what to do after another process was lost.
  Raises:
    FailureError: the others cannot be reached, or one of them was lost.
    SystemExit: (in the process that only waits) how the work ended.
  """
  if place is None:
    yield
    return
  guarded(place.index, place.count, advice)
  _connect(place)
  client = jax_distributed.global_state.client
  with failures.Failures(client, place.index, place.count) as others:
    try:
      yield
      _end()
    except SystemExit:  # all of them end
      raise
    except BaseException as error:
      failures.wait_if_lost(error)
      failure, code = _explain(error, place, advice)
      others.tell(failure, code)
      if failure is error:
        raise
      raise failure from error


def _explain(
  error: BaseException, place: Place, advice: str
) -> tuple[BaseException, int]:
  """Returns the error that names the reason, and the exit code."""
  if isinstance(error, jax.errors.JaxRuntimeError):
    reason = str(error).splitlines()[0][:200]
    message = (
      f'process {place.index} of {place.count} cannot go on, though no other '
      f'was lost: {reason} {advice}'
    )
    return FailureError(message), 1
  if isinstance(error, KeyboardInterrupt):
    return error, 130
  return error, 2 if isinstance(error, UsageError) else 1


def _connect(place: Place) -> None:
  """Waits until all processes are there.

  JAX has no parameter for how long process 0 waits before it names those that
  did not come; the others have to wait longer, to be told.
  """
  make_service = _jax.get_distributed_runtime_service
  _jax.get_distributed_runtime_service = functools.partial(
    make_service, cluster_register_timeout=_START_SECONDS
  )
  try:
    jax.distributed.initialize(
      place.address,
      place.count,
      place.index,
      place.local_devices,
      initialization_timeout=2 * _START_SECONDS,
      heartbeat_timeout_seconds=failures.HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=_MEETING_SECONDS,
    )
  except RuntimeError as error:
    raise FailureError(
      f'process {place.index} of {place.count} cannot join the run at '
      f'{place.address}: {str(error).splitlines()[0]}'
    ) from error
  finally:
    _jax.get_distributed_runtime_service = make_service


def _end() -> None:
  """Waits until all processes have come here.

  Left to JAX, this would be after the last moment to say who was lost.
  """
  jax.distributed.shutdown()


def is_first() -> bool:
  """Whether this process is the one that writes and speaks."""
  return jax.process_index() == 0


def meet(name: str) -> None:
  """Returns once every process is here; alone, at once.

  No device takes part, since those give up on waiting within seconds.

  Args:
    name: of the meeting; there is one of that name in a run.
  """
  if jax.process_count() > 1:
    from orbax.checkpoint import multihost  # brings threads; see guarded.py

    everyone = set(range(jax.process_count()))
    multihost.sync_global_processes(
      name, timeout=_MEETING_SECONDS, processes=everyone
    )


def all_agree(answer: bool) -> bool:
  """Whether `answer` is true in every process; alone, as it is."""
  if jax.process_count() == 1:
    return answer
  return bool(multihost_utils.process_allgather(answer).all())


def share(sharding: Any, rows: int) -> tuple[int, int]:
  """Which part of a global batch this process reads.

  Processes whose devices hold the same rows, as where a model is split over
  hosts, read the same part.

  Args:
    sharding: of the batch, over the devices of all hosts.
    rows: of the batch, all processes together.
  Returns:
    The part's number, and how many parts there are.
  Raises:
    UsageError: the hosts' rows overlap without being the same.
  """
  held: dict[int, set[int]] = {}
  for device, index in sharding.devices_indices_map((rows,)).items():
    held.setdefault(device.process_index, set()).add(index[0].start or 0)
  parts = sorted({tuple(sorted(starts)) for starts in held.values()})
  if len({len(part) for part in parts}) > 1 or len(set().union(*parts)) != sum(
    map(len, parts)
  ):
    raise UsageError(
      'the mesh gives hosts different but overlapping shares of a batch: '
      'choose mesh sizes of which each host has whole rows.'
    )
  return parts.index(tuple(sorted(held[jax.process_index()]))), len(parts)
