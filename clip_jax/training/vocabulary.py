"""Trains the SentencePiece vocabulary of a run on its captions."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from clip_jax.data.sources import Source
from clip_jax.errors import UsageError, print_notes
from clip_jax.files import read_json, write_bytes
from clip_jax.parallel import distributed
from clip_jax.tokenizers import sentence_piece
from clip_jax.training.config import Config, tokenizer_path


def train_vocabulary(config: Config, sources: Sequence[Source]) -> None:
  """Trains the file of `tokenizer=sentencepiece:PATH` where there is none.

  The first process trains, into a file that all processes can read, and the
  others wait. Other kinds of tokenizers are not trained.

  Raises:
    UsageError: the file was trained on other captions, or is not on this host.
  """
  path = tokenizer_path(config.tokenizer)
  if path is None or not config.tokenizer.startswith('sentencepiece:'):
    return
  if distributed.is_first_process():
    _train(config, sources, path)
  distributed.barrier('vocabulary')
  if not path.exists():
    raise UsageError(
      f'tokenizer={config.tokenizer}: process 0 has this file, and process '
      f'{jax.process_index()} does not: name one on a file system that all '
      'hosts mount, or copy it to the same path on each.'
    )


def _train(config: Config, sources: Sequence[Source], path: Path) -> None:
  """Trains `path`, or checks that it was trained as the config says.

  The settings are written beside it, as PATH.json. A file without them is a
  user's own, and used unchanged.
  """
  settings = {
    'data': config.data.train,
    'captions': list(config.data.captions),
    **config.tokenizer_training,
  }
  settings_path = path.with_name(f'{path.name}.json')
  if path.exists():
    if settings_path.exists() and read_json(settings_path) != settings:
      raise UsageError(
        f'{path} was trained on other captions or with other settings ('
        f'see {settings_path}): name another file in tokenizer, or remove both.'
      )
    return
  print(
    f'training a vocabulary of {config.tokenizer_training.vocab_size:,} pieces '
    f'on {config.data.train} -> {path.absolute()}',
    file=sys.stderr,
  )
  # Settings are written first: without a vocabulary they do no harm.
  text = json.dumps(settings, indent=2)
  write_bytes(settings_path, text.encode(), make_folder=True)
  print_notes(
    f'of the {len(source):,} records of {source.spec}, the captions of '
    f'{sentence_piece.MAX_RECORDS:,} are read, evenly spaced.'
    for source in sources
    if len(source) > sentence_piece.MAX_RECORDS
  )
  captions = (
    text
    for source in sources
    for text in source.texts(sentence_piece.MAX_RECORDS)
  )
  pieces = sentence_piece.train(
    captions, path=path, **config.tokenizer_training
  )
  if pieces < config.tokenizer_training.vocab_size:
    line = (
      f'the captions give no more than {pieces:,} pieces, fewer than '
      'tokenizer_training.vocab_size.'
    )
    print_notes([line])
