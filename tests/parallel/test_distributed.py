"""A process finds its place among others, or that it is alone, at once."""

import dataclasses
import os

import jax
import pytest
from jax._src.clusters import ClusterEnv
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.errors import FailureError, UsageError
from clip_jax.parallel import distributed
from clip_jax.parallel.distributed import Cluster, detect_cluster
from clip_jax.parallel.mesh import make_mesh

SLURM = {
  'SLURM_JOB_ID': '4096',
  'SLURM_STEP_NODELIST': 'node[07-08]',
  'SLURM_NTASKS': '2',
  'SLURM_PROCID': '1',
  'SLURM_LOCALID': '0',
}


@pytest.fixture
def environment(monkeypatch):
  """Sets variables, in an environment without any of a cluster's."""
  for name in list(os.environ):
    if name.startswith(('SLURM', 'OMPI', 'KUBERNETES', 'TPU', 'JAX_')):
      monkeypatch.delenv(name)

  def set_variables(**variables):
    for name, value in variables.items():
      monkeypatch.setenv(name, value)

  return set_variables


def test_a_process_alone_is_alone(environment):
  environment()
  assert detect_cluster() is None


def test_what_is_set_is_taken(environment):
  environment(
    JAX_COORDINATOR_ADDRESS='10.0.0.1:8476',
    JAX_NUM_PROCESSES='4',
    JAX_PROCESS_ID='3',
  )
  assert detect_cluster() == Cluster('10.0.0.1:8476', 4, 3)


def test_slurm_is_recognised(environment):
  environment(**SLURM)
  assert detect_cluster() == Cluster('node07:61440', 2, 1, [0])


def test_one_slurm_task_is_alone(environment):
  environment(**SLURM | {'SLURM_NTASKS': '1', 'SLURM_PROCID': '0'})
  assert detect_cluster() is None


def test_a_process_of_a_cluster_may_stay_alone(environment):
  environment(**SLURM, JAX_NUM_PROCESSES='1')
  assert detect_cluster() is None


@pytest.mark.parametrize(
  'variables, message',
  [
    (
      {'JAX_COORDINATOR_ADDRESS': 'a:1'},
      'without JAX_NUM_PROCESSES and JAX_PROCESS_ID',
    ),
    ({'JAX_NUM_PROCESSES': 'two'}, "JAX_NUM_PROCESSES='two' must be a whole"),
    (
      {
        'JAX_COORDINATOR_ADDRESS': 'a:1',
        'JAX_NUM_PROCESSES': '2',
        'JAX_PROCESS_ID': '2',
      },
      'numbered from 0 to 1',
    ),
    (
      {
        'JAX_COORDINATOR_ADDRESS': 'a',
        'JAX_NUM_PROCESSES': '2',
        'JAX_PROCESS_ID': '0',
      },
      'must be host:port of process 0',
    ),
  ],
)
def test_wrong_settings_are_one_line(environment, variables, message):
  environment(**variables)
  with pytest.raises(UsageError, match=message) as caught:
    detect_cluster()
  assert '\n' not in str(caught.value)


def test_a_cluster_that_cannot_be_asked_is_said(environment, monkeypatch):
  environment()

  def fail(*_):
    raise RuntimeError('no metadata server')

  monkeypatch.setattr(ClusterEnv, 'auto_detect_unset_distributed_params', fail)
  with pytest.raises(FailureError, match=r'no metadata server.*JAX_NUM'):
    detect_cluster()


def test_alone_nobody_is_waited_for():
  assert distributed.is_first_process()
  distributed.barrier('nobody')
  assert distributed.all_processes_agree(True)
  assert not distributed.all_processes_agree(False)


@dataclasses.dataclass(frozen=True)
class Device:
  process_index: int
  id: int


class Hosts:
  """As a sharding whose devices are on several hosts."""

  def __init__(self, sharding, per_host):
    self._sharding = sharding
    self._per_host = per_host

  def devices_indices_map(self, shape):
    result = self._sharding.devices_indices_map(shape).items()
    return {
      Device(device.id // self._per_host, device.id): index
      for device, index in result
    }


@pytest.mark.parametrize(
  'sizes, parts',
  [
    ((8, 1, 1), [(0, 4), (1, 4), (2, 4), (3, 4)]),
    ((2, 4, 1), [(0, 4), (1, 4), (2, 4), (3, 4)]),
    # Pairs of hosts hold one model's halves, and the same rows.
    ((2, 1, 4), [(0, 2), (0, 2), (1, 2), (1, 2)]),
    ((1, 1, 8), [(0, 1)] * 4),
  ],
)
def test_hosts_read_the_rows_that_their_devices_hold(monkeypatch, sizes, parts):
  mesh = make_mesh(*sizes)
  sharding = Hosts(NamedSharding(mesh, P(('data', 'fsdp'))), per_host=2)
  for host, part in enumerate(parts):
    monkeypatch.setattr(jax, 'process_index', lambda host=host: host)
    assert distributed.process_slice(sharding, 16) == part


def test_overlapping_rows_of_a_batch_are_refused(monkeypatch):
  order = (0, 2, 1, 4, 3, 5, 6, 7)
  mesh = make_mesh(4, 1, 2, devices=[jax.devices()[i] for i in order])
  sharding = Hosts(NamedSharding(mesh, P('data')), per_host=2)
  with pytest.raises(UsageError, match='overlapping rows'):
    distributed.process_slice(sharding, 16)
