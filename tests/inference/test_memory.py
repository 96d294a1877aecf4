"""How much memory `clip_jax.load` takes at most, seen from outside."""

import subprocess
import sys

import pytest

from tests.golden_models import GOLDENS
from tests.large_models import KINDS

# The first load brings in libraries and traces; the second is measured. Readers
# load with the first model of their kind, and so are imported before.
CHILD = """
import sys
import jax
import clip_jax
import clip_jax.checkpoints.reading
import clip_jax.inference.export
from tests.resident import resident_bytes

_, warm, reference = sys.argv
clip_jax.load(warm)
before = resident_bytes()
variables = clip_jax.load(reference).variables
jax.block_until_ready(variables)
size = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
print(size, (resident_bytes('VmHWM') - before) / size)
"""


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_loading_takes_little_more_than_the_parameters(kind, tmp_path):
  reference = KINDS[kind](tmp_path)
  command = [sys.executable, '-c', CHILD, GOLDENS / 'hf_clip', reference]
  # A busy machine frees decoded pieces later: the least of three tells.
  ratios = []
  while len(ratios) < 3 and min(ratios, default=2.0) >= 1.3:
    child = subprocess.run(
      command, capture_output=True, text=True, timeout=300, check=False
    )
    assert child.returncode == 0, child.stderr
    size, ratio = child.stdout.split()
    assert int(size) > 250e6
    ratios.append(float(ratio))
  assert 0.9 < min(ratios) < 1.3
