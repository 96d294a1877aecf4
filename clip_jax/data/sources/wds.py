"""Reads `wds:PATTERN`: tar shards as WebDataset and img2dataset write them."""

from collections.abc import Iterator, Sequence
from typing import Any

from clip_jax.data import storage
from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.image_formats import (
  HEAD_BYTES,
  PLAIN_SUFFIXES,
  format_of,
  is_format_name,
)
from clip_jax.data.indexing.find import open_index
from clip_jax.data.indexing.selection import Selection
from clip_jax.data.indexing.tar import (
  BLOCK,
  MAX_MEMBER_BYTES,
  PROBLEMS,
  reader_of,
)
from clip_jax.data.indexing.tar_shard import (
  PROBLEM_KIND,
  TarRecord,
  read_record,
)
from clip_jax.data.sources import Record, Spec
from clip_jax.data.sources.base import DEFAULT_CAPTIONS, Source, sample_indices
from clip_jax.data.sources.columns import (
  Captions,
  captions_of,
  label_captions,
  numbered_texts,
  require_columns,
)
from clip_jax.errors import FailureError, plural, quote_first
from clip_jax.files import parse_json

# Members that are read where no column is named: the first that a data set has.
_TEXTS = ('txt', 'caption', 'text')
_JSON = ('json', 'jsn')
_LABELS = ('cls', 'class')
# CLIP_benchmark's names of labels, one a line, beside the shards or above.
_NAMES = 'classnames.txt'
# A record of up to so many bytes is read at once, its image too, where only its
# captions are asked for: one read costs as much as another.
_SMALL_BYTES = 2**16
# Records that are read to learn which fields their JSON has.
_SAMPLE = 16


class WdsSource(Source):
  """The records of tar shards, with random access through an index.

  A record is a run of members with one key, the path up to the first dot of the
  file's name. Its image is the first member that is one by its content. Columns
  of captions are suffixes of members (txt) or, where no member has such a
  suffix, fields of the JSON member. Each damaged member is a corrupt record.
  The id is SHARD:KEY, and SHARD:NAME@BYTE of what is damaged.

  Attributes:
    index: where the records lie.
  """

  def __init__(self, spec: Spec, captions: tuple[str, ...]):
    """Opens the index, or makes one in memory of a few shards.

    Args:
      captions: see `open_source`; the default is the first of txt, caption and
        text that the data have, or else the field caption of their JSON.
    Raises:
      UsageError: nothing matches, no record has a column, or the shards are too
        many to be read without an index.
      FailureError: a shard or the index cannot be read.
    """
    self.spec = spec.text
    self.index, notices = open_index(spec)
    if not len(self):
      raise spec.error('no records in its shards')
    self._suffixes = {name for kind in self.index.kinds for name in kind}
    fields = self._sample_fields()
    self._has_label_field = 'label' in fields
    if self._suffixes & {*_LABELS}:
      self.label_names = self._read_label_names()
    if captions == DEFAULT_CAPTIONS:
      texts = [name for name in _TEXTS if name in self._suffixes]
      self._columns = tuple(texts[:1] or fields & {*DEFAULT_CAPTIONS})
    else:
      self._columns = tuple(name.removeprefix('.') for name in captions)
      require_columns(spec, self._columns, self._suffixes | fields)
    if self.index.totals().keys() <= {*range(PROBLEM_KIND, 256)}:
      self.remedy = (
        f'nothing in its shards can be read: {self.index.problem(0)}'
      )
    elif not self._columns and not self.label_names:
      others = {x for x in self._suffixes if f'.{x}' not in PLAIN_SUFFIXES}
      columns = ', '.join(sorted(fields or others))
      self.remedy = (
        f'name columns of captions, of {columns}'
        if columns
        else 'its records have images only: add KEY.txt to each'
      )
    if self._suffixes & {*_LABELS} and not self.label_names:
      self.remedy = self.remedy or (
        f'write the names of labels, one a line, to {_NAMES} beside the shards'
      )
    self.notices = (*notices, *self._describe_problems())
    self.notices += tuple(self._describe_uncaptioned())

  def _sample_fields(self) -> set[str]:
    """Returns the fields of the JSON of some records, evenly spaced."""
    fields = set[str]()
    if not self._suffixes & {*_JSON}:
      return fields
    for index in sample_indices(len(self), _SAMPLE):
      try:
        fields |= _json_of(self._record(index)).keys()
      except CorruptImageError:
        continue
    return fields

  def _read_label_names(self) -> tuple[str, ...] | None:
    """Returns the lines of the file of names, if there is one."""
    root = self.index.root
    for folder in (root, storage.folder_of(root)):
      path = storage.join(folder, _NAMES)
      if storage.exists(path):
        text = storage.read_all(path, 2**24).decode('utf-8-sig', 'replace')
        return tuple(line.strip() for line in text.strip().splitlines())
    return None

  def _describe_problems(self) -> Iterator[str]:
    """Yields a line about the damaged members of the shards."""
    totals = self.index.totals()
    kinds = sorted(kind for kind in totals if kind >= PROBLEM_KIND)
    if kinds:
      reasons = '; '.join(
        f'{totals[kind]:,} x {PROBLEMS[kind - PROBLEM_KIND].partition(":")[0]}'
        for kind in kinds
      )
      yield (
        f'data {self.spec!r}: damaged members, which count as corrupt records: '
        f'{reasons} ({self._first_ids(kinds)})'
      )

  def _describe_uncaptioned(self) -> Iterator[str]:
    """Yields a line about the records that are known to have no caption."""
    kinds = self._kinds_without_captions()
    count = len(Selection(self.index, kinds))
    if count and self._columns:
      yield (
        f'data {self.spec!r}: {count:,} of {plural(len(self), "record")} '
        f'without {" or ".join(self._columns)} ({self._first_ids(kinds)})'
      )

  def _first_ids(self, kinds: Sequence[int]) -> str:
    selection = Selection(self.index, kinds)
    first = [self.id(selection[i]) for i in range(min(3, len(selection)))]
    return quote_first(first, len(selection))

  def _kinds_without_captions(self) -> list[int]:
    """Returns the kinds of sound records that have no caption."""
    columns = {*self._columns}
    if columns - self._suffixes:  # some are fields of the JSON
      columns.update(_JSON)
    if self._labels_are_captions:
      columns.update(_LABELS)
    return [
      number
      for number, suffixes in enumerate(self.index.kinds)
      if not columns & {*suffixes}
    ]

  @property
  def _labels_are_captions(self) -> bool:
    return not self._columns and self.label_names is not None

  def __len__(self) -> int:
    return len(self.index)

  def captioned(self) -> Sequence[int] | None:
    without = self._kinds_without_captions()
    if not len(Selection(self.index, without)):
      return None
    return Selection(self.index, sorted({*range(256)} - {*without}))

  def has_captions(self) -> bool:
    if not self._columns and not self._labels_are_captions:
      return False
    return super().has_captions()

  def outline(self) -> Iterator[str]:
    """Yields a line about the captions, and one for each shard."""
    yield repr((self._columns, self.label_names))
    for shard in self.index.shards:
      yield repr((shard.name, shard.size, shard.sha256 or shard.version))

  def id(self, index: int) -> str:
    return self.index.id(index)

  def captions(self, index: int) -> list[str]:
    try:
      return self._captions(self._record(index))['caption']
    except CorruptImageError:
      return []

  def __getitem__(self, index: int) -> Record:
    tar_record = self._record(index, whole=True)
    number, _ = self.index.locate(index)
    record: Record = {
      'id': f'{self.index.names[number]}:{tar_record.key}',
      'image': _image_of(tar_record),
      **self._captions(tar_record),
    }
    label = self._label(tar_record)
    if label is not None:
      record['label'] = label
    return record

  def _record(self, index: int, *, whole: bool = False) -> TarRecord:
    """Returns the members of a record.

    Args:
      whole: whether all that they hold is read now, at once.
    Raises:
      CorruptImageError: it is damaged, or not what the index says.
      FailureError: its shard cannot be read.
    """
    number, entry = self.index.entry(index)
    if entry['kind'] >= PROBLEM_KIND:
      raise CorruptImageError(self.index.problem(index))
    path, start = self.index.path(number), int(entry['start']) * BLOCK
    shard = self.index.shards[number]
    storage.trust(path, shard.size, shard.version)
    length = int(entry['length']) * BLOCK
    if length > 2 * MAX_MEMBER_BYTES + BLOCK:
      raise CorruptImageError('larger than any record: a damaged index')

    def read(offset: int, size: int) -> bytes:
      size = min(size, length - offset)
      return storage.read_range(path, start + offset, size)

    at_once = whole or length <= _SMALL_BYTES
    data = reader_of(read(0, length)) if at_once else read
    record = read_record(data, length)
    if not record.members:
      raise CorruptImageError('no record where the index has one')
    return record

  def _captions(self, record: TarRecord) -> Captions:
    """Returns the texts of the columns that a record has.

    Raises:
      CorruptImageError: one is not UTF-8, or the JSON is damaged.
    """
    if self._labels_are_captions:
      label = self._label(record)
      labels = [] if label is None else [label]
      return {'caption': label_captions(self.label_names or (), labels)}
    cells = [self._cell(record, name) for name in self._columns]
    try:
      texts = [(i, x.strip()) for i, x in numbered_texts(cells) if x.strip()]
      ''.join(text for _, text in texts).encode()
    except UnicodeError as error:
      raise CorruptImageError(f'a caption is not UTF-8: {error}') from error
    return captions_of(texts, len(self._columns))

  def _cell(self, record: TarRecord, name: str) -> bytes | list[str]:
    """Returns the text of a member, or the texts of a field of the JSON.

    Raises:
      CorruptImageError: the JSON is damaged, or the field has no texts.
    """
    if name in record.members:
      return record.content(name)
    value = None if name in self._suffixes else _json_of(record).get(name)
    cell = value if isinstance(value, list) else [value or '']
    if not all(isinstance(x, str) for x in cell):
      raise CorruptImageError(f'its field {name!r} holds no texts')
    return cell

  def _label(self, record: TarRecord) -> int | None:
    """Returns the label of a record that has one.

    Raises:
      CorruptImageError: it is no label of this data set.
    """
    value: Any = None
    for name in _LABELS:
      if name in record.members:
        value = record.content(name).decode('utf-8', 'replace').strip()
        break
    else:
      if self._has_label_field:
        value = _json_of(record).get('label')
      if not isinstance(value, int):
        return None
    names = self.label_names or ()
    if value in names:
      return names.index(value)
    try:
      label = int(value)
    except ValueError:
      raise CorruptImageError(f'its label {value!r} is no number') from None
    if label == -1:  # as everywhere: no label
      return None
    if label < 0 or (names and label >= len(names)):
      raise CorruptImageError(f'its label {label} has no name')
    return label


def _image_of(record: TarRecord) -> bytes:
  """Returns the image: by its content and its suffix, or by one of them.

  Raises:
    CorruptImageError: no member is one.
  """
  by_content = [
    suffix
    for suffix, member in record.members.items()
    if format_of(record.read(member.data, min(member.size, HEAD_BYTES)))
  ]
  by_suffix = [x for x in record.members if f'.{x}' in PLAIN_SUFFIXES]
  both = [suffix for suffix in by_suffix if suffix in by_content]
  for suffix in (*both, *by_suffix, *by_content):
    return record.content(suffix)
  for suffix in filter(is_format_name, record.members):
    return record.content(suffix)
  names = ', '.join(sorted(record.members))
  raise CorruptImageError(f'no image among its members ({names})')


def _json_of(record: TarRecord) -> dict[str, Any]:
  """Returns the JSON object of a record; an empty one where there is none.

  Raises:
    CorruptImageError: it is damaged.
  """
  for name in _JSON:
    if name in record.members:
      try:
        content = parse_json(record.content(name), f'its {name}')
      except FailureError as error:
        raise CorruptImageError(str(error)) from error
      if not isinstance(content, dict):
        raise CorruptImageError(f'its {name} holds no object')
      return content
  return {}
