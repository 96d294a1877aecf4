"""Curates a collection: runs the stages in their order, on any engine.

  queries   the list of queries, and the list of ids          one task each
  select    reads, cleans, matches, drops single pairs        a task a span
  copies    drops exact copies, then copies of image files    a task a partition
  near      drops near copies, in blocks of k-means           a task a block
  balance   queries choose their pairs                        a task a partition
  shards    the output, and its counts                        a task a file

Rows go from stage to stage through files (see `partitions`), so that memory
holds a partition, of about 65,536 rows, in each worker. All random choices are
functions of the seed and a row: engines and workers change nothing.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from clip_jax.data import storage
from clip_jax.data.curation import choosing, copies
from clip_jax.data.curation.arrays import sum_counts
from clip_jax.data.curation.balance_stages import choose_pairs
from clip_jax.data.curation.filters import write_id_list
from clip_jax.data.curation.funnel import merge
from clip_jax.data.curation.metadata import (
  Metadata,
  check_corrupt,
  open_metadata,
)
from clip_jax.data.curation.query_stages import QueryList, make_queries
from clip_jax.data.curation.requirements import (
  Helpers,
  embedding_width,
  image_checks,
)
from clip_jax.data.curation.rows import CONTENT, DIGEST, EMBEDDING
from clip_jax.data.curation.selection import Selection, SelectionTask, select
from clip_jax.data.curation.settings import Settings
from clip_jax.data.curation.stages import Rows, Stages, parts_of
from clip_jax.data.curation.summary import summarise_queries
from clip_jax.data.decoding import asked_megapixels
from clip_jax.data.prepare.engine import Engine, as_json
from clip_jax.errors import UsageError
from clip_jax.files import check_fields, parse_json, to_bytes
from clip_jax.progress import Progress, no_progress

_PARTITION_ROWS = 2**16
_MAX_RESULT_BYTES = 2**28
RESULT, WORK = 'curation.json', '.work'


def curate(
  settings: Settings,
  out: str,
  *,
  engine: Engine | None = None,
  helpers: Helpers | None = None,
  progress: Progress = no_progress,
) -> dict[str, Any]:
  """Makes a collection in a folder, and returns its counts.

  A run that was killed goes on when it is called again with the same settings.

  Args:
    out: gets part-00000.parquet, …, queries.parquet and curation.json.
  Returns:
    What curation.json has: `steps` (the funnel, with samples), `queries`,
    `rows_in`, `rows_out`, `files`, `corrupt`, `settings`.
  Raises:
    UsageError: the folder has another collection; an input is missing.
    FailureError: an input cannot be read, or too much of it.
  """
  metadata = open_metadata(
    settings.inputs, settings.columns, settings.max_corrupt
  )
  helpers = helpers or Helpers()
  identity = _identity(settings, metadata, helpers)
  result = _stored_result(out, identity | {'inputs': _inputs(metadata)})
  work = storage.join(out, WORK)
  if result is None:
    stages = Stages(work, engine or Engine(), identity, progress)
    result = _Curation(settings, out, stages, helpers, metadata).run()
    storage.write_bytes(storage.join(out, RESULT), to_bytes(result))
  storage.remove_folder(work)
  return result


def _identity(
  settings: Settings, metadata: Metadata, helpers: Helpers
) -> dict[str, Any]:
  """Returns all that the stages depend on besides their tasks."""
  values = dataclasses.asdict(settings)
  queries = values.pop('queries')
  return as_json(
    {
      **values,
      **helpers.identity,
      **{f'queries.{name}': value for name, value in queries.items()},
      'columns': dataclasses.asdict(metadata.columns),
      'schema': str(metadata.schema),
      'max_megapixels': asked_megapixels(),
      'files': [[path, storage.version(path)] for path in _files_of(settings)],
    }
  )


def _files_of(settings: Settings) -> list[str]:
  """Returns the files that are read besides the inputs."""
  files: list[str] = []
  for path in (*settings.queries.paths(), *settings.ids):
    if storage.is_folder(path):  # WordNet's
      names = storage.list_folder(path)
      files += [storage.join(path, x) for x in names if not x.endswith('/')]
    else:
      files.append(path)
  return files


def _inputs(metadata: Metadata) -> list[Any]:
  return as_json(sorted({(x.path, x.version) for x in metadata.spans}))


def _stored_result(
  out: str, settings: Mapping[str, Any]
) -> dict[str, Any] | None:
  """Returns the result of a run that came to its end, or None.

  None, too, where a file of the collection has gone: it is made again.

  Raises:
    UsageError: the folder has something else.
  """
  path = storage.join(out, RESULT)
  if not storage.exists(path):
    begun = storage.exists(storage.join(out, WORK))
    exists = storage.exists(out)
    names = storage.list_folder(out) if exists and not begun else []
    if names:
      raise UsageError(f'{out} has {names[0]} already: name a new folder.')
    return None
  result = check_fields(
    path,
    parse_json(storage.read_all(path, _MAX_RESULT_BYTES), path),
    {'settings': dict, 'files': list},
  )
  for name, value in settings.items():
    if result['settings'].get(name) != value:
      raise UsageError(
        f'{out} has a collection that was made with another {name}: name '
        'another folder.'
      )
  is_whole = {*result['files']} <= {*storage.list_folder(out)}
  return result if is_whole else None


class _Curation:
  """The stages of one curation, and what they hand to each other."""

  def __init__(
    self,
    settings: Settings,
    out: str,
    stages: Stages,
    helpers: Helpers,
    metadata: Metadata,
  ):
    """Does nothing yet."""
    self._settings, self._out, self._stages = settings, out, stages
    self._helpers, self._metadata = helpers, metadata
    self._columns = metadata.columns
    self._counts: list[Mapping[str, Any]] = []
    self._corrupt = dict(metadata.corrupt)
    self._queries: QueryList | None = None

  def run(self) -> dict[str, Any]:
    """Runs all stages and returns the result."""
    checks = image_checks(
      self._settings, self._columns, self._helpers, self._stages.path
    )
    width = embedding_width(self._settings, self._metadata, self._helpers)
    self._queries = make_queries(self._stages, self._settings.queries)
    selection = Selection(
      self._settings,
      self._metadata.schema,
      self._columns,
      parts_of(self._metadata.rows, _PARTITION_ROWS),
      storage.common_folder([span.path for span in self._metadata.spans]),
      queries=self._queries.path if self._queries else None,
      queries_version=(
        storage.version(self._queries.path) if self._queries else ''
      ),
      id_list=self._write_ids(),
      images=checks,
      width=width,
    )
    self._write_evaluation()
    public = selection.public_schema()
    rows, before = self._drop_copies(self._select(selection))
    rows, after = self._balance(rows, public, before)
    files, rows_out = self._write_shards(rows, public)
    queries = self._summarise_queries(before, after)
    left_out = self._queries.left_out if self._queries else {}
    return {
      'rows_in': self._metadata.rows,
      'rows_out': rows_out,
      'files': files,
      'steps': merge(self._counts),
      'queries': {**queries, 'left_out': left_out},
      'corrupt': self._corrupt,
      'settings': {**self._stages.settings, 'inputs': _inputs(self._metadata)},
    }

  def _write_ids(self) -> str | None:
    """Writes the list of ids that are kept, if there is one."""
    if not self._settings.ids:
      return None
    task = _IdsTask(self._stages.path('ids.npy'), self._settings.ids)
    self._stages.run('ids', [task], _write_ids)
    return task.out

  def _write_evaluation(self) -> None:
    """Writes what is known of the images of evaluations, if there are any."""
    if (write := self._helpers.write_evaluation) is not None:
      folder = self._stages.folder
      task = _EvaluationTask(self._stages.path('evaluation.json'), folder)
      function = functools.partial(_write_evaluation, write)
      counts = self._stages.run('evaluation', [task], function)
      self._corrupt |= counts[0]['corrupt']
      check_corrupt(self._corrupt, self._settings.max_corrupt)

  def _select(self, selection: Selection) -> Rows:
    """Reads the rows, and drops single ones."""
    tasks = [
      SelectionTask(span, self._stages.path(f'select/{i:07}.arrow'))
      for i, span in enumerate(self._metadata.spans)
    ]
    function = functools.partial(select, selection)
    counts = self._stages.run('select', tasks, function, 'spans')
    self._counts += counts
    for part in counts:
      self._corrupt |= part['corrupt']
    check_corrupt(self._corrupt, self._settings.max_corrupt)
    paths = tuple(task.out for task in tasks)
    return Rows(paths, selection.partitions, selection.row_schema(), True)

  def _drop_copies(self, rows: Rows) -> tuple[Rows, Int[np.ndarray, ' Q']]:
    """Drops copies; returns the rest, and how many match each query."""
    steps = [('copies', CONTENT)]
    if self._settings.copies == 'images':
      steps.append(('image copies', DIGEST))
    centres, clusters = None, 0
    if self._settings.near is not None:
      steps.append(('near copies', EMBEDDING))
      centres, clusters = self._find_centres(rows)
    query_count = self._queries.count if self._queries else 0
    counts: list[str] = []
    for index, (step, _) in enumerate(steps):
      last = index + 1 == len(steps)
      out_key = CONTENT if last else steps[index + 1][1]
      out = clusters if out_key == EMBEDDING else rows.partitions
      comparison = copies.Comparison(
        step,
        rows.schema,
        rows.partitions,
        1 if last else out,
        out_key,
        self._columns.text,
        self._columns.image,
        query_count if last else 0,
        centres,
        self._settings.near or 1.0,
        self._helpers.find_copies if step == 'near copies' else None,
      )
      name = step.replace(' ', '_')
      tasks = []
      for i, (inputs, partition) in enumerate(rows.tasks()):
        path = self._stages.path(f'{name}/{i:07}')
        tasks.append(
          copies.ComparisonTask(
            partition,
            inputs,
            f'{path}.arrow',
            f'{path}.counts.npy' if last and self._queries else None,
          )
        )
      function = functools.partial(copies.drop_copies, comparison)
      self._counts += self._stages.run(name, tasks, function, 'partitions')
      counts = [task.counts for task in tasks if task.counts]
      paths = tuple(task.out for task in tasks)
      rows = Rows(paths, comparison.out_partitions, rows.schema, not last)
    return rows, sum_counts(counts, 1, query_count)[0]

  def _find_centres(self, rows: Rows) -> tuple[str, int]:
    """Finds the centres of the blocks in which near copies are looked for."""
    if self._helpers.find_copies is None:
      raise UsageError('near copies need a function that finds them.')
    task = copies.CentresTask(
      self._stages.path('centres.npy'),
      rows.paths,
      rows.partitions,
      parts_of(self._metadata.rows, self._settings.cluster_rows),
    )
    counts = self._stages.run('centres', [task], copies.find_centres)
    return task.out, counts[0]['clusters']

  def _balance(
    self, rows: Rows, public: pa.Schema, before: Int[np.ndarray, ' Q']
  ) -> tuple[Rows, Int[np.ndarray, '2 Q']]:
    """Lets queries choose pairs.

    Returns:
      The pairs, and by query how many of these match it, and how many it chose.
    """
    if self._queries is None or self._settings.balance == 'none':
      return rows, np.stack([before, before])
    choice = self._choice(rows, public, self._stages.path('limits.npy'))
    balanced = choose_pairs(
      self._stages, self._settings.balance, choice, rows, before
    )
    self._counts += balanced.steps
    return balanced.rows, balanced.counts

  def _choice(
    self, rows: Rows, public: pa.Schema, limits: str
  ) -> choosing.Choice:
    return choosing.Choice(
      rows.schema,
      public,
      self._columns.text,
      self._columns.image,
      rows.partitions,
      self._settings.seed,
      self._settings.per_query,
      self._queries.path if self._queries else None,
      limits,
    )

  def _write_shards(
    self, rows: Rows, public: pa.Schema
  ) -> tuple[list[str], int]:
    """Writes the output; returns its files and the number of pairs."""
    choice = self._choice(rows, public, '')
    tasks: list[choosing.ShardTask] = []
    kept = merge(self._counts)[-1]['out']
    parts = rows.tasks()
    # A hash divided the rows, so that all partitions have about as many.
    per_file = max(1, len(parts) * self._settings.shard_rows // max(kept, 1))
    for start in range(0, len(parts), per_file):
      some = parts[start : start + per_file]
      tasks.append(
        choosing.ShardTask(
          storage.join(self._out, f'part-{len(tasks):05}.parquet'),
          tuple(inputs for inputs, _ in some),
          tuple(partition for _, partition in some),
          rows.partitions,
        )
      )
    function = functools.partial(choosing.write_shard, choice)
    counts = self._stages.run('shards', tasks, function, 'files')
    names = [os.path.basename(task.out) for task in tasks]
    return names, sum(part['rows'] for part in counts)

  def _summarise_queries(
    self, before: Int[np.ndarray, ' Q'], after: Int[np.ndarray, '2 Q']
  ) -> dict[str, Any]:
    """Writes queries.parquet with the counts; returns what the page shows."""
    if self._queries is None:
      return {}
    with storage.open_file(self._queries.path) as file:
      table = pq.read_table(file)
    for name, values in (
      ('matches', before), ('matches_kept', after[0]), ('chosen', after[1])
    ):  # fmt: skip
      table = table.append_column(name, pa.array(values))
    path = storage.join(self._out, 'queries.parquet')
    with storage.writing(path) as temporary:
      pq.write_table(table, os.fspath(temporary), compression='zstd')
    return summarise_queries(table, self._settings.per_query)


@dataclasses.dataclass(frozen=True)
class _IdsTask:
  out: str
  paths: tuple[str, ...]


def _write_ids(task: _IdsTask) -> dict[str, Any]:
  return {'ids': write_id_list(task.paths, task.out)}


@dataclasses.dataclass(frozen=True)
class _EvaluationTask:
  out: str
  folder: str


def _write_evaluation(
  write: Callable[[str], dict[str, str]], task: _EvaluationTask
) -> dict[str, Any]:
  corrupt = write(task.folder)
  storage.write_bytes(task.out, b'{}')
  return {'corrupt': corrupt}
