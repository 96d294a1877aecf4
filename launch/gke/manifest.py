"""jobset.yaml, filled in for a topology, an image and a run."""

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

# GKE's names of the chips: the label of their nodes.
ACCELERATORS = {
  'v4': 'tpu-v4-podslice',
  'v5e': 'tpu-v5-lite-podslice',
  'v5p': 'tpu-v5p-slice',
  'v6e': 'tpu-v6e-slice',
}
CHIPS_PER_MACHINE = 4  # of every kind, where a slice has several machines


@dataclasses.dataclass(frozen=True)
class Job:
  """The settings in which two launches differ."""

  name: str
  topology: str  # KIND:AxB or KIND:AxBxC, as clip-jax plan takes it
  image: str
  train_flags: Sequence[str]
  slices: int = 1
  chips_per_machine: int = CHIPS_PER_MACHINE
  queue: str = 'multislice-queue'
  max_restarts: int = 10
  service_account: str = ''  # '': the namespace's default
  user: int | None = None  # None: the image's
  spot: bool = False
  environment: Sequence[tuple[str, str]] = ()


def fill(job: Job) -> dict:
  """Returns the JobSet of a job.

  Raises:
    ValueError: the topology is none, or does not split over the machines; or
      a number is too small.
  """
  for flag, number, least in (
    ('slices', job.slices, 1),
    ('chips-per-machine', job.chips_per_machine, 1),
    ('max-restarts', job.max_restarts, 0),
  ):
    if number < least:
      raise ValueError(f'--{flag}={number} must be at least {least}.')
  kind, shape, machines, chips = _machines(job)
  jobset = yaml.safe_load(
    Path(__file__).with_name('jobset.yaml').read_text(encoding='utf-8')
  )
  jobset['metadata']['name'] = job.name
  jobset['metadata']['labels']['kueue.x-k8s.io/queue-name'] = job.queue
  jobset['spec']['network']['subdomain'] = job.name
  jobset['spec']['failurePolicy']['maxRestarts'] = job.max_restarts

  (replicated,) = jobset['spec']['replicatedJobs']
  replicated['replicas'] = job.slices
  spec = replicated['template']['spec']
  spec['parallelism'] = spec['completions'] = machines
  _fill_pod(spec['template']['spec'], job, ACCELERATORS[kind], shape)
  (container,) = spec['template']['spec']['containers']
  container['resources']['limits']['google.com/tpu'] = chips
  return jobset


def _fill_pod(pod: dict, job: Job, accelerator: str, shape: str) -> None:
  labels = pod['nodeSelector']
  labels['cloud.google.com/gke-tpu-accelerator'] = accelerator
  labels['cloud.google.com/gke-tpu-topology'] = shape
  if job.spot:
    labels['cloud.google.com/gke-spot'] = 'true'
    pod['tolerations'].append(
      {
        'key': 'cloud.google.com/gke-spot',
        'operator': 'Equal',
        'value': 'true',
        'effect': 'NoSchedule',
      }
    )
  if job.service_account:
    pod['serviceAccountName'] = job.service_account
  (container,) = pod['containers']
  container['image'] = job.image
  container['args'] = ['--stopped_exit_code=75', *job.train_flags]
  if job.slices > 1:
    container['args'].append(f'--config.mesh.slices={job.slices}')
  container['env'] += [{'name': k, 'value': v} for k, v in job.environment]
  if job.user is not None:
    container['securityContext']['runAsUser'] = job.user


def _machines(job: Job) -> tuple[str, str, int, int]:
  """Returns a slice's kind and shape, its machines, and the chips of each."""
  match = re.fullmatch(r'(\w+):(\d+(?:x\d+){1,2})', job.topology)
  if not match or match[1] not in ACCELERATORS:
    raise ValueError(
      f'--topology={job.topology} must be such as v5e:16x16 or v5p:4x4x8, '
      f'of {", ".join(ACCELERATORS)}.'
    )
  chips = math.prod(int(side) for side in match[2].split('x'))
  each = min(job.chips_per_machine, chips)
  if not chips or chips % each:
    raise ValueError(
      f'--topology={job.topology} has {chips} chips, which machines of '
      f'{each} do not make (--chips-per-machine).'
    )
  return match[1], match[2], chips // each, each
