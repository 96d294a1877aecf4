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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int, UInt64

from clip_jax.data import storage
from clip_jax.data.curation import balance, choosing, copies, counting
from clip_jax.data.curation.arrays import (
  add_counts,
  load_array,
  write_array,
)
from clip_jax.data.curation.filters import write_id_list
from clip_jax.data.curation.funnel import merge
from clip_jax.data.curation.image_checks import ImageChecks, Look
from clip_jax.data.curation.metadata import (
  Metadata,
  check_corrupt,
  first_width,
  open_metadata,
)
from clip_jax.data.curation.queries import (
  QueryFiles,
  build_queries,
  write_queries,
)
from clip_jax.data.curation.rows import CONTENT, DIGEST, EMBEDDING
from clip_jax.data.curation.selection import (
  Selection,
  SelectionTask,
  select,
)
from clip_jax.data.curation.settings import Settings
from clip_jax.data.curation.summary import summarise_queries
from clip_jax.data.prepare.engine import Engine, as_json, run_stage
from clip_jax.errors import UsageError
from clip_jax.files import check_fields, parse_json, to_bytes
from clip_jax.progress import Progress, no_progress

_PARTITION_ROWS = 2**16
_MAX_PARTITIONS = 2048
_NUMBERS_AT_ONCE = 2**22  # draws of frequent queries that a task sorts
_MAX_RESULT_BYTES = 2**28
RESULT, WORK = 'curation.json', '.work'


@dataclasses.dataclass(frozen=True)
class Helpers:
  """Functions that need a model or an evaluation, which data/ cannot import.

  Attributes:
    looks: see `image_checks.Look`; identity: what they depend on.
    scores, width: whether they give scores, and the width of their embeddings.
    find_copies: see `copies.FindCopies`.
    evaluation: names of files in the working folder, by 'digests', 'hashes' and
      'embeddings'; `write_evaluation` writes them there.
  """

  looks: tuple[Look, ...] = ()
  identity: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  scores: bool = False
  width: int = 0
  find_copies: copies.FindCopies | None = None
  evaluation: tuple[str, ...] = ()
  write_evaluation: Callable[[str], None] | None = None


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
    FailureError: an input cannot be read.
  """
  metadata = open_metadata(
    settings.inputs, settings.columns, settings.max_corrupt
  )
  curation = _Curation(
    settings,
    out,
    engine or Engine(),
    helpers or Helpers(),
    progress,
    metadata,
  )
  result = curation.stored_result()
  if result is None:
    result = curation.run()
    storage.write_bytes(storage.join(out, RESULT), to_bytes(result))
  storage.remove_folder(storage.join(out, WORK))
  return result


@dataclasses.dataclass(frozen=True)
class _Rows:
  """Files of rows between two stages.

  Attributes:
    paths: the files.
    partitions: of each file; a task of the next stage reads one of all files,
      or, where there is 1, one file.
    schema: of the rows.
  """

  paths: tuple[str, ...]
  partitions: int
  schema: pa.Schema

  def tasks(self) -> list[tuple[tuple[str, ...], int]]:
    """Returns the files and the partition that each task reads."""
    if self.partitions == 1:
      return [((path,), 0) for path in self.paths]
    return [(self.paths, x) for x in range(self.partitions)]


class _Curation:
  """The stages of one curation."""

  def __init__(
    self,
    settings: Settings,
    out: str,
    engine: Engine,
    helpers: Helpers,
    progress: Progress,
    metadata: Metadata,
  ):
    """Does nothing yet."""
    self._settings, self._out, self._engine = settings, out, engine
    self._helpers, self._progress, self._metadata = helpers, progress, metadata
    self._work = storage.join(out, WORK)
    self._columns = metadata.columns
    self._identity = as_json(
      {
        **_without_queries(settings),
        **{
          f'queries.{name}': value
          for name, value in dataclasses.asdict(settings.queries).items()
        },
        'columns': dataclasses.asdict(metadata.columns),
        'schema': str(metadata.schema),
        'helpers': dict(helpers.identity),
        'files': [
          [path, storage.version(path)] for path in _files_of(settings)
        ],
      }
    )
    self._counts: list[Mapping[str, Any]] = []
    self._corrupt = dict(metadata.corrupt)
    self._queries: str | None = None
    self._query_count = 0

  def stored_result(self) -> dict[str, Any] | None:
    """Returns the result of a run that came to its end, or None.

    None, too, where a file of the collection has gone: it is made again.

    Raises:
      UsageError: the folder has something else.
    """
    path = storage.join(self._out, RESULT)
    if not storage.exists(path):
      begun = storage.exists(self._work)
      exists = storage.exists(self._out)
      names = storage.list_folder(self._out) if exists and not begun else []
      if names:
        raise UsageError(
          f'{self._out} has {names[0]} already: name a new folder.'
        )
      return None
    result = check_fields(
      path,
      parse_json(storage.read_all(path, _MAX_RESULT_BYTES), path),
      {'settings': dict, 'files': list},
    )
    wanted = self._identity | {'inputs': self._inputs()}
    for name, value in wanted.items():
      if result['settings'].get(name) != value:
        raise UsageError(
          f'{self._out} has a collection that was made with another {name}: '
          'name another folder.'
        )
    is_whole = {*result['files']} <= {*storage.list_folder(self._out)}
    return result if is_whole else None

  def run(self) -> dict[str, Any]:
    """Runs all stages and returns the result."""
    left_out = self._make_queries()
    rows, public = self._select()
    rows, before = self._drop_copies(rows)
    rows, after = self._balance(rows, public, before)
    files, rows_out = self._write_shards(rows, public)
    queries = self._summarise_queries(before, after)
    return {
      'rows_in': self._metadata.rows,
      'rows_out': rows_out,
      'files': files,
      'steps': merge(self._counts),
      'queries': {**queries, 'left_out': left_out},
      'corrupt': self._corrupt,
      'settings': self._identity | {'inputs': self._inputs()},
    }

  def _inputs(self) -> list[Any]:
    return as_json(sorted({(x.path, x.version) for x in self._metadata.spans}))

  def _path(self, name: str) -> str:
    return storage.join(self._work, name)

  def _run(
    self,
    name: str,
    tasks: Sequence[Any],
    function: Callable[[Any], dict[str, Any]],
    unit: str = 'tasks',
  ) -> list[dict[str, Any]]:
    """Runs a stage, whose tasks have `out` and maybe `counts`, their files."""
    return run_stage(
      name,
      tasks,
      function,
      self._work,
      engine=self._engine,
      settings=self._identity,
      outputs=lambda task: [
        path for path in (task.out, getattr(task, 'counts', None)) if path
      ],
      progress=self._progress,
      unit=f'{unit} ({name})',
    )

  def _make_queries(self) -> dict[str, int]:
    """Writes the list of queries; returns what was left out of it."""
    files = self._settings.queries
    if not files.paths():
      return {}
    counted, total = self._count_texts(files)
    task = _QueriesTask(self._path('queries.parquet'), files, counted, total)
    counts = self._run('queries', [task], _write_queries)[0]
    self._queries, self._query_count = task.out, counts['queries']
    return counts['left_out']

  def _count_texts(self, files: QueryFiles) -> tuple[tuple[str, ...], int]:
    """Counts the words of texts; returns the files of counts, and the number
    of all words.
    """
    if not files.texts:
      return (), 0
    blocks = counting.block_tasks(files.texts, self._path('count'))
    counts = self._run('count', blocks, counting.count_block, 'blocks')
    partitions = blocks[0].partitions if blocks else 0
    sums = [
      counting.SumTask(
        partition,
        partitions,
        tuple(task.out for task in blocks),
        files.min_count,
        self._path(f'sums/{partition:07}.arrow'),
      )
      for partition in range(partitions)
    ]
    self._run('sums', sums, counting.add_up, 'partitions')
    return tuple(task.out for task in sums), sum(x['words'] for x in counts)

  def _select(self) -> tuple[_Rows, pa.Schema]:
    settings, helpers = self._settings, self._helpers
    id_list = None
    if settings.ids:
      if self._columns.id is None:
        raise UsageError('--ids: no column of ids; name it by --id_column.')
      id_list = self._path('ids.npy')
      task = _IdsTask(id_list, settings.ids)
      self._run('ids', [task], _write_ids)
    if helpers.write_evaluation is not None:
      task = _EvaluationTask(self._path('evaluation.json'), self._work)
      function = functools.partial(_write_evaluation, helpers.write_evaluation)
      self._run('evaluation', [task], function)
    selection = Selection(
      settings,
      self._metadata.schema,
      self._columns,
      _parts_of(self._metadata.rows, _PARTITION_ROWS),
      storage.common_folder([span.path for span in self._metadata.spans]),
      queries=self._queries,
      queries_version=(storage.version(self._queries) if self._queries else ''),
      id_list=id_list,
      images=self._image_checks(),
      width=self._width(),
    )
    tasks = [
      SelectionTask(span, self._path(f'select/{i:07}.arrow'))
      for i, span in enumerate(self._metadata.spans)
    ]
    counts = self._run(
      'select', tasks, functools.partial(select, selection), 'spans'
    )
    self._counts += counts
    for part in counts:
      self._corrupt |= part['corrupt']
    check_corrupt(self._corrupt, self._settings.max_corrupt)
    paths = tuple(task.out for task in tasks)
    rows = _Rows(paths, selection.partitions, selection.row_schema())
    return rows, selection.public_schema()

  def _width(self) -> int:
    """Returns the width of the embeddings that rows have, or 0."""
    if self._settings.near is None and self._settings.evaluation_near is None:
      return 0
    if self._helpers.width:
      return self._helpers.width
    name = self._columns.embedding
    if name is None:
      raise UsageError(
        'near copies are found by embeddings: name a --model, or a column of '
        'embeddings by --embedding_column.'
      )
    kind = self._metadata.schema.field(name).type
    if pa.types.is_fixed_size_list(kind):
      return kind.list_size
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
      raise UsageError(f'the column {name!r} holds {kind}, not embeddings.')
    return first_width(self._metadata, name)

  def _image_checks(self) -> ImageChecks | None:
    settings, helpers, columns = self._settings, self._helpers, self._columns
    read = settings.read_images or bool(helpers.looks)
    uses_vectors = bool(settings.near or settings.evaluation_near)
    self._check_columns(read)
    if not (read or uses_vectors or helpers.evaluation):
      return None
    if read and columns.image is None:
      raise UsageError(
        'images are to be read, and no column has them: name it by '
        '--image_column.'
      )
    sizes = columns.width is not None and columns.height is not None
    files = {
      name: self._path(f'evaluation_{name}.npy') for name in helpers.evaluation
    }
    return ImageChecks(
      columns.text,
      columns.image,
      read,
      helpers.looks,
      helpers.scores,
      columns.embedding if uses_vectors and not helpers.width else None,
      0 if sizes else settings.min_side,
      0.0 if sizes else settings.max_aspect,
      settings.min_score,
      files.get('digests'),
      files.get('hashes'),
      settings.evaluation_bits or 0,
      files.get('embeddings'),
      settings.evaluation_near or 1.0,
      settings.max_corrupt,
    )

  def _check_columns(self, read: bool) -> None:
    """Refuses filters that have nothing to look at.

    Raises:
      UsageError: it says which column or flag is missing.
    """
    settings, columns = self._settings, self._columns
    sizes = columns.width is not None and columns.height is not None
    if (settings.min_side or settings.max_aspect) and not (sizes or read):
      raise UsageError(
        '--min_side and --max_aspect need columns of widths and heights '
        '(--width_column, --height_column), or --read_images.'
      )
    if settings.min_score is not None and not (
      columns.score or self._helpers.scores
    ):
      raise UsageError(
        '--min_score needs a column of scores (--score_column), or --model=REF.'
      )
    if settings.copies == 'images' and not (read or columns.hash):
      raise UsageError(
        '--copies=images needs --read_images, where images are at hand, or a '
        'column of SHA-256 (--hash_column).'
      )
    if settings.evaluation and not (read or columns.hash):
      raise UsageError(
        '--evaluation compares images: add --read_images, where they are at '
        'hand, or name a column of SHA-256 by --hash_column.'
      )

  def _drop_copies(self, rows: _Rows) -> tuple[_Rows, Int[np.ndarray, ' Q']]:
    """Drops copies; returns the rest, and how many match each query."""
    steps = [('copies', CONTENT)]
    if self._settings.copies == 'images':
      steps.append(('image copies', DIGEST))
    centres, clusters = None, 0
    if self._settings.near is not None:
      steps.append(('near copies', EMBEDDING))
      centres, clusters = self._find_centres(rows)
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
        self._query_count if last else 0,
        centres,
        self._settings.near or 1.0,
        self._helpers.find_copies if step == 'near copies' else None,
      )
      name = step.replace(' ', '_')
      tasks = []
      for i, (inputs, partition) in enumerate(rows.tasks()):
        path = self._path(f'{name}/{i:07}')
        tasks.append(
          copies.ComparisonTask(
            partition,
            inputs,
            f'{path}.arrow',
            f'{path}.counts.npy' if last and self._queries else None,
          )
        )
      function = functools.partial(copies.drop_copies, comparison)
      self._counts += self._run(name, tasks, function, 'partitions')
      counts = [task.counts for task in tasks if task.counts]
      paths = tuple(task.out for task in tasks)
      rows = _Rows(paths, comparison.out_partitions, rows.schema)
    return rows, self._sum_counts(counts, 1)[0]

  def _find_centres(self, rows: _Rows) -> tuple[str, int]:
    if self._helpers.find_copies is None:
      raise UsageError('near copies need a function that finds them.')
    task = copies.CentresTask(
      self._path('centres.npy'),
      rows.paths,
      rows.partitions,
      _parts_of(self._metadata.rows, self._settings.cluster_rows),
    )
    counts = self._run('centres', [task], copies.find_centres)
    return task.out, counts[0]['clusters']

  def _sum_counts(
    self, paths: Sequence[str], kinds: int
  ) -> Int[np.ndarray, 'K Q']:
    total = np.zeros((kinds, self._query_count), np.int64)
    for path in paths:
      add_counts(total, path)
    return total

  def _balance(
    self, rows: _Rows, public: pa.Schema, before: Int[np.ndarray, ' Q']
  ) -> tuple[_Rows, Int[np.ndarray, '2 Q']]:
    """Lets queries choose; returns the pairs, and by query how many of these
    match it, and how many it chose.
    """
    settings = self._settings
    if self._queries is None or settings.balance == 'none':
      return rows, np.stack([before, before])
    limits = self._path('limits.npy')
    choice = self._choice(rows, public, limits)
    if settings.balance == 'sample':
      values = balance.sampling_limits(before, settings.per_query)
    else:
      values = self._find_limits(choice, rows, before)
    write_array(values, limits)
    tasks = [
      choosing.ChoiceTask(
        partition,
        inputs,
        self._path(f'balance/{i:07}.arrow'),
        self._path(f'balance/{i:07}.counts.npy'),
      )
      for i, (inputs, partition) in enumerate(rows.tasks())
    ]
    function = functools.partial(choosing.choose, choice)
    self._counts += self._run('balance', tasks, function, 'partitions')
    counts = self._sum_counts([task.counts or '' for task in tasks], 2)
    paths = tuple(task.out for task in tasks)
    return _Rows(paths, 1, rows.schema), counts

  def _choice(
    self, rows: _Rows, public: pa.Schema, limits: str
  ) -> choosing.Choice:
    return choosing.Choice(
      rows.schema,
      public,
      self._columns.text,
      self._columns.image,
      rows.partitions,
      self._settings.seed,
      self._settings.per_query,
      self._queries,
      limits,
    )

  def _find_limits(
    self, choice: choosing.Choice, rows: _Rows, before: Int[np.ndarray, ' Q']
  ) -> UInt64[np.ndarray, ' Q']:
    """Returns the limits below which queries have exactly `per_query` pairs."""
    per_query = choice.per_query
    candidates = balance.candidate_limits(before, per_query)
    limits = np.where(candidates > 0, candidates, balance.ALL)
    if not (candidates > 0).any():
      return limits
    path = self._path('candidate_limits.npy')
    write_array(candidates, path)
    expected = np.minimum(before, 2 * per_query + 64)[candidates > 0].sum()
    choice = dataclasses.replace(
      choice,
      limits=path,
      number_partitions=_parts_of(int(expected), _NUMBERS_AT_ONCE),
    )
    written = [
      choosing.ChoiceTask(
        partition, inputs, self._path(f'numbers/{i:07}.arrow')
      )
      for i, (inputs, partition) in enumerate(rows.tasks())
    ]
    function = functools.partial(choosing.write_numbers, choice)
    self._run('numbers', written, function, 'partitions')
    paths = tuple(task.out for task in written)
    tasks = [
      choosing.ChoiceTask(i, paths, self._path(f'limits/{i:07}.npy'))
      for i in range(choice.number_partitions)
    ]
    function = functools.partial(choosing.find_limits, choice)
    self._run('limits', tasks, function, 'partitions')
    for task in tasks:
      names, values = load_array(task.out)
      names = names.astype(np.int64)
      limits[names] = np.minimum(limits[names], values)
    return limits

  def _write_shards(
    self, rows: _Rows, public: pa.Schema
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
    counts = self._run('shards', tasks, function, 'files')
    names = [os.path.basename(task.out) for task in tasks]
    return names, sum(part['rows'] for part in counts)

  def _summarise_queries(
    self, before: Int[np.ndarray, ' Q'], after: Int[np.ndarray, '2 Q']
  ) -> dict[str, Any]:
    """Writes queries.parquet with the counts; returns what the page shows."""
    if self._queries is None:
      return {}
    with storage.open_file(self._queries) as file:
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
class _QueriesTask:
  out: str
  files: QueryFiles
  counted: tuple[str, ...]
  total: int


def _write_queries(task: _QueriesTask) -> dict[str, Any]:
  queries, left_out = build_queries(
    task.files, counting.read_counts(task.counted), task.total
  )
  write_queries(queries, task.out)
  return {'queries': len(queries), 'left_out': left_out}


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
  write: Callable[[str], None], task: _EvaluationTask
) -> dict[str, Any]:
  write(task.folder)
  storage.write_bytes(task.out, b'{}')
  return {}


def _without_queries(settings: Settings) -> dict[str, Any]:
  values = dataclasses.asdict(settings)
  del values['queries']
  return values


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


def _parts_of(total: int, size: int) -> int:
  """Returns in how many parts of about `size` something is divided."""
  return max(1, min(-(-total // size), _MAX_PARTITIONS))
