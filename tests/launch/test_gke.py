"""launch/gke: the manifest against its schemas, and the commands."""

import copy
import json
import pathlib
import re
import shlex
import sys

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.launch.conftest import ROOT, one_error_line

SCHEMA = json.loads(
  pathlib.Path(__file__).with_name('jobset.schema.json').read_text()
)
KUBERNETES = '1.33'
RUN = (
  *('--name=vit-l14', '--topology=v5e:16x16', '--image=registry/clip:1'),
  *('--config=configs/emoji.py', '--workdir=gs://bucket/run'),
)


@pytest.fixture
def gke(project):
  """Runs launch.py; `kubectl` and `docker` keep their calls, and its input."""
  project.command(
    'kubectl',
    'printf "%q " kubectl "$@" >>"$HOME/said"; echo >>"$HOME/said"\n'
    'case "$1" in\n'
    '  apply) cat >"$HOME/applied"; exit "${apply_code:-0}" ;;\n'
    '  get) head -n1 "$HOME/states"; sed -i 1d "$HOME/states" ;;\n'
    '  logs) echo "step 1 loss 10.4" ;;\n'
    'esac',
  )
  project.command(
    'docker',
    'printf "%q " docker "$@" >>"$HOME/said"; echo >>"$HOME/said"\n'
    'exit "${docker_code:-0}"',
  )
  for name in ('head', 'sed'):
    (project.bin / name).symlink_to(f'/usr/bin/{name}')
  return project


def launch(gke, *words, **environment):
  return gke.run(
    *(sys.executable, 'launch/gke/launch.py'), *words, **environment
  )


def said(gke):
  path = gke.bin.parent / 'said'
  lines = path.read_text().splitlines() if path.exists() else []
  return [shlex.split(line) for line in lines]


def applied(gke, *words):
  """The JobSet that the cluster gets."""
  done = launch(gke, 'apply', *RUN, *words)
  assert done.returncode == 0, done.stderr
  return yaml.safe_load((gke.bin.parent / 'applied').read_text())


def base():
  return yaml.safe_load((ROOT / 'launch/gke/jobset.yaml').read_text())


def validate(jobset):
  """Raises where the JobSet, or a Job or a pod in it, has a slip."""
  jsonschema.validate(jobset, SCHEMA)
  for replicated in jobset['spec']['replicatedJobs']:
    job = {
      'apiVersion': 'batch/v1',
      'kind': 'Job',
      'metadata': {'name': replicated['name']},
      'spec': replicated['template']['spec'],
    }
    kubernetes_validate.validate(job, KUBERNETES, strict=True)


def job_of(jobset):
  return jobset['spec']['replicatedJobs'][0]['template']['spec']


def pod_of(jobset):
  return job_of(jobset)['template']['spec']


def test_the_manifest_is_valid_as_it_stands():
  validate(base())


ALL_FLAGS = (
  *('--slices=2', '--spot', '--user=0', '--service-account=trainer'),
  *('--queue=mine', '--max-restarts=3', '--env=A=b=c', '--namespace=clip'),
)


@pytest.mark.parametrize('words', [(), ALL_FLAGS], ids=['plain', 'all flags'])
def test_and_filled_in(gke, words):
  validate(applied(gke, *words))


def break_pod(jobset):
  pod_of(jobset)['hostNetworks'] = True


def break_container(jobset):
  pod_of(jobset)['containers'][0]['arg'] = []


def break_job(jobset):
  job_of(jobset)['parallelism'] = '4'


def break_policy(jobset):
  jobset['spec']['failurePolicy']['restarts'] = 4


def break_action(jobset):
  jobset['spec']['failurePolicy']['rules'][0]['action'] = 'Restart'


def break_name(jobset):
  jobset['metadata']['name'] = 'ViT/L14'


@pytest.mark.parametrize(
  'spoil',
  [
    *(break_pod, break_container, break_job),
    *(break_policy, break_action, break_name),
  ],
)
def test_a_slip_in_the_manifest_would_be_found(spoil):
  jobset = copy.deepcopy(base())
  spoil(jobset)
  with pytest.raises(
    (jsonschema.ValidationError, kubernetes_validate.ValidationError)
  ):
    validate(jobset)


@pytest.mark.parametrize(
  ('topology', 'accelerator', 'machines', 'chips'),
  [
    ('v5e:16x16', 'tpu-v5-lite-podslice', 64, 4),
    ('v5e:2x2', 'tpu-v5-lite-podslice', 1, 4),
    ('v5e:1x1', 'tpu-v5-lite-podslice', 1, 1),
    ('v6e:4x8', 'tpu-v6e-slice', 8, 4),
    ('v5p:4x4x8', 'tpu-v5p-slice', 32, 4),
    ('v4:2x2x4', 'tpu-v4-podslice', 4, 4),
  ],
)
def test_a_pod_for_each_machine(gke, topology, accelerator, machines, chips):
  jobset = applied(gke, f'--topology={topology}')
  job, pod = job_of(jobset), pod_of(jobset)
  assert job['parallelism'] == job['completions'] == machines
  assert pod['containers'][0]['resources']['limits'] == {
    'google.com/tpu': chips
  }
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': accelerator,
    'cloud.google.com/gke-tpu-topology': topology.partition(':')[2],
  }


def test_eight_chips_on_one_machine(gke):
  jobset = applied(gke, '--topology=v5e:2x4', '--chips-per-machine=8')
  assert job_of(jobset)['completions'] == 1


def test_the_run_is_passed_on(gke):
  jobset = applied(gke, '--config.data.captions=("a", "it\'s")', '--slices=2')
  assert jobset['spec']['replicatedJobs'][0]['replicas'] == 2
  (container,) = pod_of(jobset)['containers']
  assert container['image'] == 'registry/clip:1'
  assert container['args'] == [
    '--stopped_exit_code=75',
    '--config=configs/emoji.py',
    '--workdir=gs://bucket/run',
    '--config.data.captions=("a", "it\'s")',
    '--config.mesh.slices=2',
  ]


def test_flags_reach_their_fields(gke):
  jobset = applied(gke, *ALL_FLAGS)
  pod = pod_of(jobset)
  assert jobset['metadata']['labels'] == {'kueue.x-k8s.io/queue-name': 'mine'}
  assert jobset['spec']['failurePolicy']['maxRestarts'] == 3
  assert pod['serviceAccountName'] == 'trainer'
  assert pod['nodeSelector']['cloud.google.com/gke-spot'] == 'true'
  assert pod['containers'][0]['securityContext']['runAsUser'] == 0
  assert {'name': 'A', 'value': 'b=c'} in pod['containers'][0]['env']
  assert said(gke)[0][-1] == '--namespace=clip'


def test_an_interruption_restarts_all_and_counts_for_nothing():
  """The code of a saved stop is the one that the policy looks for."""
  jobset = base()
  (rule,) = jobset['spec']['failurePolicy']['rules']
  assert rule['action'] == 'RestartJobSetAndIgnoreMaxRestarts'
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
  disrupted, stopped = job_of(jobset)['podFailurePolicy']['rules']
  assert disrupted['onPodConditions'][0]['type'] == 'DisruptionTarget'
  (container,) = pod_of(jobset)['containers']
  assert stopped['onExitCodes']['containerName'] == container['name']
  (code,) = stopped['onExitCodes']['values']
  assert f'--stopped_exit_code={code}' in container['args']
  assert pod_of(jobset)['restartPolicy'] == 'Never'  # the policy needs it


def test_a_dry_run_can_be_pasted_and_does_what_a_real_one_does(gke):
  dry = launch(gke, 'apply', *RUN, '--dry-run')
  assert dry.returncode == 0 and said(gke) == []
  real = applied(gke)
  pasted = gke.run('bash', '-c', dry.stdout)
  assert pasted.returncode == 0, pasted.stderr
  first, second = said(gke)
  assert first == second
  assert yaml.safe_load((gke.bin.parent / 'applied').read_text()) == real


def test_the_image_is_built_and_pushed(gke):
  dry = launch(gke, 'image', '--image=registry/clip:1', '--dry-run')
  assert launch(gke, 'image', '--image=registry/clip:1').returncode == 0
  build, push = said(gke)
  assert dry.stdout.splitlines() == [shlex.join(build), shlex.join(push)]
  assert '--file=launch/gke/Dockerfile' in build
  assert push == ['docker', 'push', 'registry/clip:1']


def test_the_log_is_followed_through_restarts_to_the_end(gke):
  (gke.bin.parent / 'states').write_text('\n\nCompleted\n')
  done = launch(gke, 'logs', '--name=vit-l14')
  assert done.returncode == 0, done.stderr
  assert done.stdout.count('step 1') == 2
  (selector,) = {w for c in said(gke) for w in c if 'selector' in w}
  assert 'jobset.sigs.k8s.io/jobset-name=vit-l14' in selector


def test_a_run_that_failed(gke):
  (gke.bin.parent / 'states').write_text('Failed\n')
  done = launch(gke, 'logs', '--name=vit-l14')
  assert done.returncode == 1
  assert 'kubectl describe jobset vit-l14' in one_error_line(done)


def test_delete(gke):
  assert launch(gke, 'delete', '--name=vit-l14').returncode == 0
  assert said(gke) == [['kubectl', 'delete', 'jobset', 'vit-l14']]


@pytest.mark.parametrize('verb', ['apply', 'logs', 'delete'])
def test_without_kubectl(gke, verb):
  (gke.bin / 'kubectl').unlink()
  done = launch(gke, verb, *(RUN if verb == 'apply' else RUN[:1]))
  assert done.returncode == 1
  assert 'no command kubectl' in one_error_line(done)


def test_a_cluster_that_refuses(gke):
  done = launch(gke, 'apply', *RUN, apply_code='1')
  assert done.returncode == 1
  assert 'kubectl apply failed' in one_error_line(done)


def test_an_image_that_does_not_build_is_not_pushed(gke):
  done = launch(gke, 'image', '--image=a', docker_code='1')
  assert done.returncode == 1
  assert len(said(gke)) == 1


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    ((), 'verb'),
    (('aply', *RUN), "invalid choice: 'aply'"),
    (('apply', *RUN[1:]), 'apply needs --name'),
    (('logs',), 'logs needs --name'),
    (('image',), 'image needs --image'),
    (('apply', *RUN, '--name=ViT'), 'lower-case'),
    (('apply', *RUN, '--slice=2'), 'does not take --slice=2'),
    (('apply', *RUN, '--slices=two'), 'invalid int'),
    (('apply', *RUN, '--topology=v5e:16'), 'such as v5e:16x16'),
    (('apply', *RUN, '--topology=v9:4x4'), 'such as v5e:16x16'),
    (('apply', *RUN, '--topology=v5e:2x3'), '6 chips'),
    (('apply', *RUN, '--topology=v5e:0x4'), '0 chips'),
    (('apply', *RUN, '--slices=0'), 'at least 1'),
    (('apply', *RUN, '--chips-per-machine=0'), 'at least 1'),
    (('apply', *RUN, '--max-restarts=-1'), 'at least 0'),
    (('apply', *RUN, '--workdir=runs/x'), 'must be gs://'),
    (('apply', *RUN, '--config=configs/none.py'), 'no file in configs/'),
    (('apply', *RUN, '--env=A'), '--env=NAME=VALUE'),
  ],
)
def test_a_wrong_call_is_one_line(gke, words, message):
  done = launch(gke, *words)
  assert done.returncode == 2
  assert message in one_error_line(done)
  assert said(gke) == []


def test_help(gke):
  done = launch(gke, '--help')
  assert done.returncode == 0
  assert 'usage:' in done.stdout and '--topology' in done.stdout


def test_the_container_has_what_it_copies_and_is_not_root():
  lines = (ROOT / 'launch/gke/Dockerfile').read_text().splitlines()
  copied = [
    source
    for line in lines
    if line.startswith('COPY')
    for source in line.split()[1:-1]
  ]
  assert copied and all((ROOT / source).exists() for source in copied)
  let_in = re.findall(
    r'^!(.+)$',
    (ROOT / 'launch/gke/Dockerfile.dockerignore').read_text(),
    re.MULTILINE,
  )
  assert sorted(let_in) == sorted(copied)
  (user,) = [line.split()[1] for line in lines if line.startswith('USER')]
  assert int(user) > 0
