"""The settings of a curation."""

import dataclasses

from clip_jax.data.curation.balance import METHODS
from clip_jax.data.curation.queries import QueryFiles
from clip_jax.errors import UsageError, check_choice


@dataclasses.dataclass(frozen=True)
class Settings:
  """The settings of a curation; the outputs depend on nothing else.

  Attributes:
    inputs: Parquet files, folders or patterns.
    columns: names of columns that the user gives, by the keys of
      `metadata.NAMES`.
    queries: where queries come from.
    languages: ISO 639-1 codes that are kept; empty is all, and then no text's
      language is told.
    min_characters, max_characters, min_words: of a cleaned text; 0 is no bound.
    min_side, max_aspect: of an image, in pixels, and longer over shorter side;
      0 is no bound.
    min_score: the least CLIP score, a cosine; None is no bound.
    ids: lists of ids to keep.
    read_images: whether images, local files or bytes in a column, are read: for
      their sizes and for copies among them.
    copies: 'pairs' drops pairs of the same image and text; 'images' also those
      whose images are of the same bytes, so that an image has one text.
    near: cosine from which two images are copies; None compares none.
    cluster_rows: rows in a block of those that are compared, on average.
    evaluation: data sets, whose images are removed.
    evaluation_near: cosine from which an image counts as one of these; None
      compares no embeddings.
    evaluation_bits: bits of 64 in which the perceptual hashes of two copies may
      differ; None compares none.
    balance: one of METHODS, or 'none'.
    per_query: pairs that each query may choose.
    seed: of all random choices.
    shard_rows: pairs in an output file, about.
    max_corrupt: files, row groups and images that may be unreadable.
  """

  inputs: tuple[str, ...]
  columns: dict[str, str] = dataclasses.field(default_factory=dict)
  queries: QueryFiles = dataclasses.field(default_factory=QueryFiles)
  languages: tuple[str, ...] = ()
  min_characters: int = 0
  max_characters: int = 0
  min_words: int = 0
  min_side: int = 0
  max_aspect: float = 0.0
  min_score: float | None = None
  ids: tuple[str, ...] = ()
  read_images: bool = False
  copies: str = 'pairs'
  near: float | None = None
  cluster_rows: int = 4096
  evaluation: tuple[str, ...] = ()
  evaluation_near: float | None = None
  evaluation_bits: int | None = None
  balance: str = 'cap'
  per_query: int = 20_000
  seed: int = 0
  shard_rows: int = 100_000
  max_corrupt: int = 100

  def __post_init__(self) -> None:
    """Checks the numbers.

    Raises:
      UsageError: one is out of its range.
    """
    check_choice('--balance', self.balance, (*METHODS, 'none'))
    check_choice('--copies', self.copies, ('pairs', 'images'))
    for name in ('per_query', 'shard_rows', 'cluster_rows'):
      if getattr(self, name) < 1:
        raise UsageError(f'--{name}={getattr(self, name)}: use 1 or more.')
    for name in ('near', 'evaluation_near'):
      value = getattr(self, name)
      if value is not None and not 0 < value <= 1:
        raise UsageError(
          f'--{name}={value}: use a cosine, above 0 and up to 1.'
        )
    if self.max_aspect and self.max_aspect < 1:
      raise UsageError(
        f'--max_aspect={self.max_aspect}: the longer side over the shorter is '
        'at least 1.'
      )
    if self.max_characters and self.max_characters < self.min_characters:
      raise UsageError(
        f'--max_characters={self.max_characters} is below '
        f'--min_characters={self.min_characters}.'
      )
