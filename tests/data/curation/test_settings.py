"""Settings of a curation that are out of their range."""

import pytest

from clip_jax.data.curation.settings import Settings
from clip_jax.errors import UsageError


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'per_query': 0}, '--per_query=0: use 1 or more'),
    ({'near': 1.5}, '--near=1.5: use a cosine'),
    ({'balance': 'even'}, "--balance='even': choose one of cap, sample, none"),
    ({'max_aspect': 0.5}, 'at least 1'),
  ],
)
def test_wrong_settings_are_refused(fields, message):
  with pytest.raises(UsageError, match=message):
    Settings(('x.parquet',), **fields)
