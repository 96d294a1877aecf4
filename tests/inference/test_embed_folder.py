"""The folder of an embedding job: what is damaged is refused."""

import numpy as np
import pytest

from clip_jax.errors import FailureError, UsageError
from clip_jax.inference.embed_folder import Division, EmbedFolder, RowNotes


@pytest.mark.parametrize(
  'job',
  [
    '[]', '{}', '{"identity": {}}', '{"identity": [], "plan": {}}',
    '{"identity": {}, "plan": {"images": 2, "texts": 0, "part_rows": 0}}',
    '{"identity": {}, "plan": {"images": 1e18, "texts": 0, "part_rows": 1}}',
    '{"identity": {}, "plan": {"images": 99, "texts": 0, "part_rows": 1}}',
    '{"identity": {"model": 3, "step": []}, "plan": {}}',
    '[' * 100_000,
  ],
)  # fmt: skip
def test_a_damaged_job_is_refused(tmp_path, job):
  folder = EmbedFolder(tmp_path / 'e.npz')
  folder.path.mkdir()
  (folder.path / 'job.json').write_text(job)
  (folder.path / '00000000.npz').touch()
  with (
    pytest.raises((FailureError, UsageError), match='parts'),
    folder.begin({}, Division(2, 0, 2)),
  ):
    pass


NOTES = {
  'ids': ['a', 'b'], 'captions': ['', ''], 'digests': '00' * 32, 'corrupt': {},
  'truncated': 0,
}  # fmt: skip


@pytest.mark.parametrize(
  'change, rows',
  [
    ({'ids': ['a']}, 2), ({'captions': []}, 2), ({'digests': 'xy'}, 2),
    ({'digests': '00'}, 2), ({}, 3),
  ],
)  # fmt: skip
def test_columns_of_other_lengths_are_damage(tmp_path, change, rows):
  folder = EmbedFolder(tmp_path / 'e.npz')
  with folder.begin({}, Division(2, 0, 2)):
    (shard,) = folder.shards
    notes = RowNotes(**{**NOTES, **change})
    folder.write(shard, notes, np.ones((rows, 3), np.float32))
    with pytest.raises(FailureError, match=r'npz is damaged .* remove it'):
      folder.read_rows(shard)
