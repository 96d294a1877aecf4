"""The numbers of the paper, to be shown beside what was measured.

No file of the authors has them. They were copied from public transcriptions
of the tables (`published.json` says which), so each is uncertain unless
somebody has quoted it independently; show an uncertain one as such.
"""

import functools
import importlib.resources
import json
from dataclasses import dataclass
from typing import Any

_SPELLINGS = {
  'ViT-L/14@336px': 'ViT-L/14@336',
  'ViT-L/14-336px': 'ViT-L/14@336',
}


@dataclass(frozen=True)
class Published:
  """A number of the paper."""

  value: float  # percent
  uncertain: bool  # not confirmed by a second, independent quotation
  within: float | None  # points that it may be off, where that is known
  where: str  # the table or figure


def published(model: str, dataset: str, task: str) -> Published | None:
  """Returns what the paper reports, or None where it reports nothing.

  Args:
    model: a name of the preset table, such as 'ViT-B/32', or the paper's
      spelling of it.
    dataset: a name of the table of data sets.
    task: 'zero_shot', 'linear_probe', 'text_retrieval_r1' (the text of an
      image) or 'image_retrieval_r1' (the image of a text).
  """
  return _numbers().get((_SPELLINGS.get(model, model), dataset, task))


@functools.cache
def _numbers() -> dict[tuple[str, str, str], Published]:
  file = (
    importlib.resources.files('clip_jax.evaluation.datasets') / 'published.json'
  )
  result: dict[tuple[str, str, str], Published] = {}
  for table in json.loads(file.read_text(encoding='utf-8'))['tables']:
    for model, values in table['values'].items():
      for dataset, value in zip(table['datasets'], values, strict=True):
        result[model, dataset, table['task']] = _number(
          table, model, dataset, value
        )
  return result


def _number(
  table: dict[str, Any], model: str, dataset: str, value: float
) -> Published:
  certain = dataset in table['confirmed'].get(model, [])
  return Published(
    value=value,
    uncertain=not certain,
    within=None if certain else table['within'].get(dataset),
    where=table['where'],
  )
