"""The paper's data sets: what they are called, where they are, what to ask.

`table.py` has a row for each, `prompts/NAME.json` its names and templates,
`matching.py` finds a source's labels among the names, `published.py` has the
paper's own results.
"""

from clip_jax.evaluation.datasets.names import (
  class_names,
  match,
  match_names,
  source,
  templates,
  wordnet_ids,
)
from clip_jax.evaluation.datasets.published import Published, published
from clip_jax.evaluation.datasets.table import DATASETS, DatasetFacts

__all__ = [
  'DATASETS',
  'DatasetFacts',
  'Published',
  'class_names',
  'match',
  'match_names',
  'published',
  'source',
  'templates',
  'wordnet_ids',
]
