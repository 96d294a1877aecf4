"""Joins the processes of one run on many hosts, and synchronizes them.

Every host runs the same command. Its place in the cluster is read from the
environment: JAX_COORDINATOR_ADDRESS (host:port of process 0),
JAX_NUM_PROCESSES and JAX_PROCESS_ID, or what JAX's own detection knows of Cloud
TPU, GKE, Slurm, Kubernetes and Open MPI. Variables that are set win over what
is detected.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax._src import distributed as jax_distributed
from jax._src.clusters import ClusterEnv  # its answers have no public name
from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]
from jax.experimental import multihost_utils

from clip_jax.errors import FailureError, UsageError

ADDRESS = 'JAX_COORDINATOR_ADDRESS'
COUNT = 'JAX_NUM_PROCESSES'
INDEX = 'JAX_PROCESS_ID'

_START_SECONDS = 300  # for all machines of a job to start
_BARRIER_SECONDS = 3600  # for the first process to finish its own work


@dataclasses.dataclass(frozen=True)
class Cluster:
  """The processes of a run, as one of them sees it."""

  address: str  # host:port of process 0
  count: int  # processes
  index: int  # of this process
  local_devices: Sequence[int] | None = None  # None: all of the host's


def detect_cluster() -> Cluster | None:
  """Returns the cluster that this process is part of, or None if it is alone.

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
  settings = {ADDRESS: address, COUNT: count, INDEX: index}
  missing = [name for name, value in settings.items() if value is None]
  if len(missing) == len(settings) or count == 1:
    return None
  if address is None or count is None or index is None:
    given = ', '.join(f'{k}={v}' for k, v in settings.items() if v is not None)
    raise UsageError(
      f'{given} without {" and ".join(missing)}: a run of several processes '
      f'needs all three (or {COUNT}=1).'
    )
  _check(address, count, index)
  return Cluster(address, count, index, devices)


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


RERUN_ADVICE = 'Run the same command again in all of them.'
RESUME_ADVICE = f'{RERUN_ADVICE[:-1]}: it goes on from the newest checkpoint.'


@contextlib.contextmanager
def join_cluster(
  cluster: Cluster | None, advice: str = RERUN_ADVICE
) -> Iterator[None]:
  """Runs the block as one JAX program with the other processes.

  Call it before a device is touched, and while there is one thread only: the
  work goes on in a child process (see supervisor.py). All processes end
  together. A process that fails tells the others (see peer_failures.py) and
  leaves at once, instead of waiting for them to end as JAX does.

  Args:
    cluster: from `detect_cluster`; None does nothing.
    advice: what to do after another process was lost.
  Raises:
    FailureError: the others cannot be reached, or one of them was lost.
    SystemExit: (in the process that only waits) how the work ended.
  """
  if cluster is None:
    yield
    return
  from clip_jax.parallel import peer_failures
  from clip_jax.parallel.supervisor import run_supervised

  run_supervised(cluster.index, cluster.count, advice)
  _connect(cluster)
  client = jax_distributed.global_state.client
  with peer_failures.PeerFailures(
    client, cluster.index, cluster.count
  ) as peers:
    try:
      yield
      _disconnect()
    except SystemExit:  # all of them end
      raise
    except BaseException as error:
      peer_failures.wait_if_peer_lost(error)
      failure, code = _explain(error, cluster, advice)
      peers.announce(failure, code)
      if failure is error:
        raise
      raise failure from error


def _explain(
  error: BaseException, cluster: Cluster, advice: str
) -> tuple[BaseException, int]:
  """Returns the error that names the reason, and the exit code."""
  if isinstance(error, jax.errors.JaxRuntimeError):
    reason = str(error).splitlines()[0][:200]
    message = (
      f'process {cluster.index} of {cluster.count} cannot go on, though no '
      f'other was lost: {reason} {advice}'
    )
    return FailureError(message), 1
  if isinstance(error, KeyboardInterrupt):
    return error, 130
  return error, 2 if isinstance(error, UsageError) else 1


def _connect(cluster: Cluster) -> None:
  """Waits until all processes have connected.

  JAX has no parameter for how long process 0 waits before it names those that
  did not connect; the others have to wait longer, to be told.
  """
  from clip_jax.parallel import peer_failures

  make_service = _jax.get_distributed_runtime_service
  _jax.get_distributed_runtime_service = functools.partial(
    make_service, cluster_register_timeout=_START_SECONDS
  )
  try:
    jax.distributed.initialize(
      cluster.address,
      cluster.count,
      cluster.index,
      cluster.local_devices,
      initialization_timeout=2 * _START_SECONDS,
      heartbeat_timeout_seconds=peer_failures.HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=_BARRIER_SECONDS,
    )
  except RuntimeError as error:
    raise FailureError(
      f'process {cluster.index} of {cluster.count} cannot join the run at '
      f'{cluster.address}: {str(error).splitlines()[0]}'
    ) from error
  finally:
    _jax.get_distributed_runtime_service = make_service


def _disconnect() -> None:
  """Waits until all processes have finished, and leaves the cluster.

  Left to JAX, this would be after the last moment to say who was lost.
  """
  jax.distributed.shutdown()


def is_first_process() -> bool:
  """Returns whether this process is the one that writes and prints."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Waits until every process has called this.

  No device takes part, since those give up on waiting within seconds.

  Args:
    name: of the barrier, which is used once in a run.
  """
  if jax.process_count() > 1:
    from orbax.checkpoint import multihost  # brings threads; see supervisor.py

    everyone = set(range(jax.process_count()))
    multihost.sync_global_processes(
      name, timeout=_BARRIER_SECONDS, processes=everyone
    )


def all_processes_agree(answer: bool) -> bool:
  """Returns whether `answer` is true in every process."""
  if jax.process_count() == 1:
    return answer
  return bool(multihost_utils.process_allgather(answer).all())


def processes_unlike_first(digest: bytes) -> list[int]:
  """Returns the processes whose digest is another than that of the first.

  All processes call this, with digests of one length.
  """
  if jax.process_count() == 1:
    return []
  own = np.frombuffer(digest, np.uint8)
  digests = multihost_utils.process_allgather(own)
  return np.flatnonzero((digests != digests[0]).any(axis=1)).tolist()


def process_slice(sharding: Any, rows: int) -> tuple[int, int]:
  """Returns which slice of a global batch this process reads.

  Processes whose devices hold the same rows, as where a model is split over
  hosts, read the same slice.

  Args:
    sharding: of the batch, over the devices of all hosts.
    rows: of the batch, all processes together.
  Returns:
    The slice's index, and how many slices there are.
  Raises:
    UsageError: the hosts' rows overlap without being the same.
  """
  starts_of: dict[int, set[int]] = {}
  for device, index in sharding.devices_indices_map((rows,)).items():
    starts_of.setdefault(device.process_index, set()).add(index[0].start or 0)
  slices = sorted({tuple(sorted(starts)) for starts in starts_of.values()})
  if len({len(part) for part in slices}) > 1 or len(
    set().union(*slices)
  ) != sum(map(len, slices)):
    raise UsageError(
      'the mesh gives hosts different but overlapping rows of a batch: '
      'choose mesh sizes of which each host has whole rows.'
    )
  return slices.index(tuple(sorted(starts_of[jax.process_index()]))), len(
    slices
  )
