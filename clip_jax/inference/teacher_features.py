"""A teacher's features of a training set's views and captions, in a folder.

```
FOLDER/
  manifest.json   by which model, of which views of which records
  00000000.npz    a shard: records [0, n), all their views and captions
```

A shard has `ids` (uint64 [n], hashes), `images` (float [n, K, E]), `captions`
(uint64 [m], hashes; those of record i are `ends[i - 1]` to `ends[i]`), `ends`
(int64 [n]) and `texts` (float [m, E]); features are of unit length, those of a
record whose image could not be read are zeros. Training reads them in any
order, from mapped files, and compares the hashes at each reading.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from clip_jax.data.augment import Augmentation
from clip_jax.data.examples import DrawnView
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.data.sources import Source
from clip_jax.data.sources.base import sample_indices
from clip_jax.data.views import Views
from clip_jax.errors import FailureError, UsageError
from clip_jax.files import check_fields, typed_path
from clip_jax.inference.embeddings_npz import map_arrays
from clip_jax.inference.identity import hash_each
from clip_jax.inference.shards import Shard, ShardStore, make_shards
from clip_jax.objectives.distillation import teacher_arrays

VERSION = 1  # of the files in the folder

# The dtypes on disk, by that of the model's arithmetic, whose precision they
# keep: numpy has no bfloat16.
STORED = {'float32': np.float32, 'bfloat16': np.float16}

_MOST_MAPPED = 128  # shards; each holds an open file
_COMPARED_IDS = 16  # records of each data set, before a run begins
_REMEDY = 'embed again, with the config that you train'


@dataclasses.dataclass(frozen=True)
class ShardNotes:
  """The fields of a shard beside its arrays.

  Attributes:
    corrupt: id to reason, of records whose image could not be read.
    truncated: how many captions were truncated to the context length.
  """

  corrupt: dict[str, str]
  truncated: int


def store_of(folder: Path, dtype: str) -> ShardStore[ShardNotes]:
  """Returns the shards of a folder, which need not be there yet.

  Args:
    dtype: of the model's arithmetic, a key of `STORED`.
  """
  features = STORED[dtype]
  arrays = {
    'ids': (np.uint64, 1),
    'images': (features, 3),
    'captions': (np.uint64, 1),
    'ends': (np.int64, 1),
    'texts': (features, 2),
  }
  return ShardStore(folder, ShardNotes, arrays)


def describe_views(
  views: Views, augmentation: Augmentation, preprocessing: Preprocessing
) -> dict[str, Any]:
  """Returns all that a view depends on, beside its size and the record.

  They are fields of a config's `data`, by name.
  """
  fields = {
    'view_seed': views.seed,
    'interpolation': preprocessing.interpolation,
    'background': preprocessing.background or '',
    'exif': preprocessing.exif,
    **{f'augment.{k}': v for k, v in augmentation.to_dict().items()},
  }
  return {
    name: list(value) if isinstance(value, tuple) else value
    for name, value in fields.items()
  }


class TeacherFeatures:
  """The features of one teacher, of any view and caption.

  It pickles, so that worker processes can have it.

  Attributes:
    folder: where they are.
    dims: E.
    logit_scale: 1 / temperature, as the teacher has learned it.
  """

  def __init__(self, folder: str | Path):
    """Reads the manifest.

    Raises:
      UsageError: there is none, or shards are missing.
    """
    self.folder = typed_path(folder)
    manifest = self._read_manifest()
    self._identity: dict[str, Any] = manifest['identity']
    self.dims: int = manifest['dims']
    self.logit_scale: float = manifest['logit_scale']
    self._rows: int = manifest['part_rows']
    self._records = sum(self._identity['records'])
    shards = make_shards('image', self._records, self._rows)
    store = store_of(self.folder, self._identity['dtype'])
    missing = [shard for shard in shards if not store.has(shard)]
    if missing:
      raise UsageError(
        f'{self.folder}: {len(missing):,} of {len(shards):,} parts are '
        'missing: the clip-jax embed that began it goes on with them.'
      )
    self._mapped: collections.OrderedDict[int, Mapping[str, np.ndarray]] = (
      collections.OrderedDict()
    )

  def __getstate__(self) -> dict[str, Any]:
    return self.__dict__ | {'_mapped': collections.OrderedDict()}

  def _read_manifest(self) -> dict[str, Any]:
    path = self.folder / 'manifest.json'
    if not path.is_file():
      raise UsageError(
        f'{self.folder}: no features of a teacher; name a folder that '
        'clip-jax embed --config=… wrote.'
      )
    fields = {'identity': dict, 'dims': int, 'part_rows': int}
    manifest = check_fields(
      path,
      ShardStore(self.folder, ShardNotes, {}).read_manifest(),
      {**fields, 'logit_scale': (int, float)},
    )
    identity = check_fields(
      f'{path}, identity',
      manifest['identity'],
      {
        'records': list,
        'captions': list,
        'views': int,
        'of_views': dict,
        'dtype': str,
      },
    )
    counts = [manifest['part_rows'], manifest['dims'], *identity['records']]
    if identity['dtype'] not in STORED or not all(
      type(count) is int and count > 0 for count in counts
    ):
      raise FailureError(f'{path} is damaged: remove {self.folder}.')
    return manifest

  def check(
    self,
    sources: Sequence[Source],
    captions: Sequence[str],
    views: Views,
    of_views: Mapping[str, Any],
  ) -> None:
    """Refuses a run for which the features were not made.

    Args:
      sources: of the run, those with captions (`captioned_sources`).
      captions: the columns that the run's captions come from.
      views: of the run.
      of_views: what `describe_views` says of the run's.
    Raises:
      UsageError: other records, captions or views, or fewer views.
    """
    stored = self._identity['of_views']
    differing = [
      f'data.{name}={value!r}, {stored.get(name)!r} there'
      for name, value in of_views.items()
      if stored.get(name) != value
    ]
    if differing:
      raise UsageError(
        f'{self.folder} has features of other views: {"; ".join(differing)}. '
        f'{_REMEDY.capitalize()}, or train with its settings.'
      )
    if views.count > self._identity['views']:
      raise UsageError(
        f'{self.folder} has {self._identity["views"]} views of each record, '
        f'and data.views={views.count}: use at most that.'
      )
    lacking = [x for x in captions if x not in self._identity['captions']]
    if lacking:
      raise UsageError(
        f'{self.folder} has no features of the captions {lacking[0]!r} of '
        f'data.captions: {_REMEDY}.'
      )
    records = [len(source) for source in sources]
    if records != self._identity['records']:
      raise UsageError(
        f'{self.folder} has features of {_numbers(self._identity["records"])} '
        f'records, and data.train has {_numbers(records)}: {_REMEDY}.'
      )
    first = 0
    for source in sources:
      for index in sample_indices(len(source), _COMPARED_IDS):
        try:
          self._find(first + index, source.id(index))
        except FailureError as error:
          raise UsageError(str(error)) from error
      first += len(source)

  def read(
    self, drawn: Sequence[DrawnView]
  ) -> tuple[Float[np.ndarray, 'B E'], Float[np.ndarray, 'B E']]:
    """Reads the features of views and of their captions, float32.

    Raises:
      FailureError: they are of another record, or of another caption.
    """
    images = np.empty((len(drawn), self.dims), np.float32)
    texts = np.empty((len(drawn), self.dims), np.float32)
    captions = hash_each(view.caption for view in drawn)
    for row, (view, caption) in enumerate(zip(drawn, captions, strict=True)):
      arrays, place = self._find(view.index, view.id)
      images[row] = arrays['images'][place, view.view]
      if not images[row].any():
        raise FailureError(
          f'{self.folder} has no features of record {view.id!r}, whose image '
          f'could not be read then: {_REMEDY}.'
        )
      begin = arrays['ends'][place - 1] if place else 0
      hashes = arrays['captions'][begin : arrays['ends'][place]]
      (matches,) = np.nonzero(hashes == caption)
      if not len(matches):
        raise FailureError(
          f'{self.folder} does not have the caption {view.caption!r} of record '
          f'{view.id!r}: {_REMEDY}.'
        )
      texts[row] = arrays['texts'][begin + matches[0]]
    return images, texts

  def _find(
    self, index: int, record_id: str
  ) -> tuple[Mapping[str, np.ndarray], int]:
    """Returns the shard of a record, and its row there.

    Raises:
      FailureError: the record there is another.
    """
    number, row = divmod(index, self._rows)
    arrays = self._mapped.get(number)
    if arrays is None:
      arrays = self._map(number)
    self._mapped[number] = arrays
    self._mapped.move_to_end(number)
    while len(self._mapped) > _MOST_MAPPED:
      self._mapped.popitem(last=False)
    if arrays['ids'][row] != hash_each([record_id])[0]:
      raise FailureError(
        f'{self.folder} has the features of other data: its record {index:,} '
        f'is not {record_id!r}, which it is in data.train; {_REMEDY}.'
      )
    return arrays, row

  def _map(self, number: int) -> Mapping[str, np.ndarray]:
    begin = number * self._rows
    shard = Shard(
      number, 'image', begin, min(begin + self._rows, self._records)
    )
    path = self.folder / shard.file_name
    arrays = map_arrays(path)
    views, count = self._identity['views'], len(arrays.get('captions', ()))
    shapes = {
      'ids': (len(shard),),
      'images': (len(shard), views, self.dims),
      'ends': (len(shard),),
      'captions': (count,),
      'texts': (count, self.dims),
    }
    for name, shape in shapes.items():
      if name not in arrays or arrays[name].shape != shape:
        raise FailureError(
          f'{path} is damaged (its {name!r} is not as it should be): remove '
          'it, and the clip-jax embed that made it makes it again.'
        )
    return arrays


def _numbers(counts: Sequence[int]) -> str:
  return ' and '.join(f'{count:,}' for count in counts)


@dataclasses.dataclass(frozen=True)
class TeacherArrays:
  """The arrays that teachers add to a batch; see `examples.Teachers`.

  Attributes:
    teachers: their features.
    names: of each teacher's image and text features in the batch.
  """

  teachers: Sequence[TeacherFeatures]
  names: Sequence[tuple[str, str]]

  def __call__(self, drawn: Sequence[DrawnView]) -> dict[str, np.ndarray]:
    """Reads the features of a batch."""
    return {
      name: array
      for teacher, names in zip(self.teachers, self.names, strict=True)
      for name, array in zip(names, teacher.read(drawn), strict=True)
    }


def open_teachers(
  folders: Sequence[str | Path],
  sources: Sequence[Source],
  captions: Sequence[str],
  views: Views,
  of_views: Mapping[str, Any],
) -> TeacherArrays:
  """Opens the teachers of a run, and checks that they are of its data.

  Args:
    folders: of each teacher.
    sources, captions, views, of_views: see `TeacherFeatures.check`.
  Raises:
    UsageError: there is no such teacher, or it saw something else.
  """
  teachers = [TeacherFeatures(folder) for folder in folders]
  for teacher in teachers:
    teacher.check(sources, captions, views, of_views)
  return TeacherArrays(
    teachers, [teacher_arrays(i) for i in range(len(teachers))]
  )
