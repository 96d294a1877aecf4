"""Hostile files: every reader refuses them by an error of ours, or reads on.

No case may end the process, take over 20 seconds or 2 GB, or raise anything
else. `CLIP_JAX_FUZZ_CASES` is how many are tried, CLIP_JAX_FUZZ_SEED the first
seed; `python -m tests.fuzz.run --reader NAME --seed N` repeats one.
"""

import os

import pytest

from tests.fuzz.run import cases, run

CASES = int(os.environ.get('CLIP_JAX_FUZZ_CASES', '2000'))
FIRST = int(os.environ.get('CLIP_JAX_FUZZ_SEED', '0'))


@pytest.mark.slow
def test_hostile_files_are_refused_in_one_line(tmp_path):
  result = list(run(cases(CASES, FIRST), tmp_path))
  bad = [str(case) for case in result if not case.is_fine]
  assert len(result) == CASES
  assert not bad, '\n'.join([f'{len(bad)} of {CASES:,} fell short', *bad[:20]])
