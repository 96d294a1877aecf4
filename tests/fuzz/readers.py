"""Every reader of files from outside, with files that it reads.

A reader makes its files in a folder, once, and reads a copy of it that was
damaged. It may refuse by one of `OURS`, or read what is still to be read.
"""

import base64
import dataclasses
import hashlib
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from clip_jax.errors import FailureError, UsageError
from tests.golden_models import GOLDENS

OURS = (UsageError, FailureError)


@dataclasses.dataclass(frozen=True)
class Reader:
  """One kind of files.

  Attributes:
    make: writes good ones.
    read: reads what has become of them.
    share: of the cases, in proportion to the others'.
    mend: makes checksums right again that would end most cases early.
    refused: whether the good files are not read either.
  """

  make: Callable[[Path], None]
  read: Callable[[Path, Random], None]
  share: int = 2
  mend: Callable[[Path, Random], None] = lambda folder, random: None
  refused: bool = False


def _copy(source: str, *names: str) -> Callable[[Path], None]:
  def make(folder: Path) -> None:
    for name in names:
      shutil.copy(GOLDENS / source / name, folder)

  return make


# Models.


def _load(folder: Path, random: Random, **options: Any) -> None:
  import clip_jax

  model = clip_jax.load(folder, **options)
  if random.random() < 0.1:
    size = model.preprocessing.side
    model.encode_image(np.zeros((1, size, size, 3), np.uint8))
    if model.description.tokenizer is not None:
      model.encode_text(['a red cat'])


def _load_file(name: str, **options: Any) -> Callable[[Path, Random], None]:
  def read(folder: Path, random: Random) -> None:
    _load(folder / name, random, **options)

  return read


def _hugging_face_model(folder: Path) -> None:
  _copy('hf_clip', 'config.json', 'model.safetensors',
        'preprocessor_config.json')(folder)  # fmt: skip
  _words_tokenizer(folder)


def _sharded_model(folder: Path) -> None:
  from safetensors.numpy import load_file, save_file

  _copy('hf_clip', 'config.json', 'preprocessor_config.json')(folder)
  arrays = load_file(GOLDENS / 'hf_clip' / 'model.safetensors')
  shards, weight_map = [dict(list(arrays.items())[i::2]) for i in (0, 1)], {}
  for i, shard in enumerate(shards, 1):
    name = f'model-{i:05}-of-00002.safetensors'
    save_file(shard, folder / name)
    weight_map |= dict.fromkeys(shard, name)
  index = {'metadata': {'total_size': 1}, 'weight_map': weight_map}
  text = json.dumps(index)
  (folder / 'model.safetensors.index.json').write_text(text)


def _open_clip_model(folder: Path) -> None:
  _copy('open_clip_vit', 'model.safetensors')(folder)
  text = (GOLDENS / 'open_clip_vit' / 'config.json').read_text()
  content = json.loads(text)
  if 'model_cfg' not in content:
    content = {'model_cfg': content, 'preprocess_cfg': {'size': 32}}
  (folder / 'open_clip_config.json').write_text(json.dumps(content))


def _open_clip_run(folder: Path) -> None:
  from safetensors.numpy import load_file

  from tests.interop.test_open_clip_run import PARAMS, checkpoint

  weights = load_file(GOLDENS / 'open_clip_vit' / 'model.safetensors')
  text = ''.join(f'{name}: {value}\n' for name, value in PARAMS.items())
  (folder / 'params.txt').write_text(text)
  (folder / 'checkpoints').mkdir()
  checkpoint(folder / 'checkpoints' / 'epoch_2.pt', 2, weights)


def _adapter(folder: Path) -> None:
  """A folder of PEFT, which is refused with what to do."""
  config = {'base_model_name_or_path': 'x/y', 'peft_type': 'LORA', 'r': 8}
  (folder / 'adapter_config.json').write_text(json.dumps(config))
  _copy('hf_clip', 'model.safetensors')(folder)


def _legacy_pickle(folder: Path) -> None:
  from tests.interop import torch_archives as archives

  array = np.zeros(4, np.float32)
  state = archives.mapping({'a': archives.tensor('0', array)})
  parts = [pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {})]
  parts.append(archives.finished(state))
  parts.append(pickle.dumps(['0'], 2))
  tail = struct.pack('<q', 4) + array.tobytes()
  (folder / 'model.pt').write_bytes(b''.join(parts) + tail)


def _big_vision(folder: Path) -> None:
  from tests.interop.test_layouts import big_vision_weights

  arrays = big_vision_weights(frozenset())
  np.savez(folder / 'model.npz', **arrays)


def _run(folder: Path) -> None:
  from tests.tiny_run import write_run

  write_run(folder, steps=(3, 7))


def _export(folder: Path) -> None:
  from clip_jax.inference.export import export
  from tests.tiny_run import tiny_model

  export(tiny_model(), folder / 'export')


def _read_export(folder: Path, random: Random) -> None:
  from clip_jax.inference.exported import Exported

  model = Exported(folder / 'export')
  if random.random() < 0.5:
    _ = model._image_program, model._text_program
  if random.random() < 0.2:
    model.encode_image(np.zeros((1, 16, 16, 3), np.uint8))
    model.classify(np.zeros((1, 16, 16, 3), np.uint8), ['red', 'cat'])


def _reseal(folder: Path, random: Random) -> None:
  """The manifest of an export agrees with what its files have become."""
  from clip_jax.files import read_bytes

  path = folder / 'export' / 'manifest.json'
  if random.random() < 0.3:
    return
  try:
    manifest = json.loads(read_bytes(path))
    for name, entry in manifest['files'].items():
      data = read_bytes(path.parent / name)
      entry |= {
        'bytes': len(data), 'sha256': hashlib.sha256(data).hexdigest()
      }  # fmt: skip
    path.write_text(json.dumps(manifest))
  except Exception:  # it was damaged itself
    return


# Tokenizers.


def _words_tokenizer(folder: Path) -> None:
  from tests.tokenizers.test_hugging_face import word_tokenizer

  (folder / 'tokenizer.json').write_text(word_tokenizer().to_str(), 'utf-8')
  config = {
    'bos_token': '[CLS]', 'pad_token': {'content': '[PAD]', 'lstrip': False},
    'eos_token': '[SEP]', 'model_max_length': 16, 'padding_side': 'right',
    'do_lower_case': True, 'add_bos_token': True, 'add_eos_token': True,
    'tokenizer_class': 'PreTrainedTokenizerFast', 'split_special_tokens': False,
  }  # fmt: skip
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  special = {'unk_token': '[UNK]', 'bos_token': {'content': '[CLS]'}}
  (folder / 'special_tokens_map.json').write_text(json.dumps(special))


def _pieces() -> bytes:
  from tests.tiny_run import tiny_description

  return base64.b64decode(tiny_description().tokenizer['model'])


def _charsmap_tokenizer(folder: Path) -> None:
  """A small tokenizer.json with everything that SentencePiece has."""
  from clip_jax.tokenizers.sentence_piece_definition import (
    sentence_piece_definition,
  )

  content = json.loads(sentence_piece_definition(_pieces()))
  (folder / 'tokenizer.json').write_text(json.dumps(content))
  config = {'eos_token': '</s>', 'pad_token': '<pad>', 'model_max_length': 16}
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))


def _byte_pairs(folder: Path) -> None:
  """CLIP's files with a small vocabulary."""
  letters = 'abcdefgr'
  merges = ['c a', 'ca t</w>', 'r e', 're d</w>']
  symbols = [
    *letters, 't', *(f'{x}</w>' for x in f'{letters}t'),
    *(merge.replace(' ', '') for merge in merges),
    '<|startoftext|>', '<|endoftext|>',
  ]  # fmt: skip
  ids = {symbol: i for i, symbol in enumerate(symbols)}
  (folder / 'vocab.json').write_text(json.dumps(ids))
  (folder / 'merges.txt').write_text('\n'.join(['#version: 0.2', *merges, '']))
  config = {
    'bos_token': {'content': '<|startoftext|>', 'normalized': True},
    'eos_token': '<|endoftext|>', 'pad_token': '<|endoftext|>',
    'tokenizer_class': 'CLIPTokenizer', 'model_max_length': 77,
  }  # fmt: skip
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))


def _siglip_tokenizer(folder: Path) -> None:
  (folder / 'spiece.model').write_bytes(_pieces())
  config = {
    'do_lower_case': True, 'eos_token': '</s>', 'pad_token': '</s>',
    'model_max_length': 16, 'tokenizer_class': 'SiglipTokenizer',
  }  # fmt: skip
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))


def _open_clip_tokenizer(folder: Path) -> None:
  _words_tokenizer(folder)
  text = {
    'context_length': 16, 'hf_tokenizer_name': 'x/y', 'vocab_size': 13,
    'tokenizer_kwargs': {'clean': 'canonicalize'},
  }  # fmt: skip
  config = {'model_cfg': {'embed_dim': 16, 'text_cfg': text}}
  (folder / 'open_clip_config.json').write_text(json.dumps(config))


def _read_tokenizer(folder: Path, random: Random) -> None:
  from clip_jax import tokenizers

  _use_tokenizer(tokenizers.load(f'hf:{folder}'))


def _read_pieces(folder: Path, random: Random) -> None:
  from clip_jax import tokenizers

  _use_tokenizer(tokenizers.load(f'sentencepiece:{folder / "pieces.model"}'))


def _descriptions(folder: Path) -> None:
  from clip_jax import tokenizers

  for make in (_words_tokenizer, _siglip_tokenizer, _charsmap_tokenizer):
    part = folder / 'made'
    part.mkdir()
    make(part)
    described = tokenizers.load(f'hf:{part}').describe()
    (folder / f'{make.__name__}.json').write_text(json.dumps(described))
    shutil.rmtree(part)


def _read_descriptions(folder: Path, random: Random) -> None:
  from clip_jax import tokenizers
  from clip_jax.files import read_json

  for path in sorted(folder.glob('_*.json')):
    result = read_json(path)
    if isinstance(result, dict):
      _use_tokenizer(tokenizers.from_description(result))


def _use_tokenizer(tokenizer: Any) -> None:
  from clip_jax import tokenizers

  rows = tokenizer(['a red cat', '', 'ü 😀 [SEP]'])
  assert rows.dtype == np.int32
  assert rows.shape == (3, tokenizer.context_length)
  tokenizer.decode(rows[0])
  tokenizer.text_lengths('a')
  again = json.loads(json.dumps(tokenizer.describe()))
  tokenizers.from_description(again)


# Images.

FORMATS = (
  'PNG', 'JPEG', 'GIF', 'WEBP', 'TIFF', 'BMP', 'AVIF', 'HEIF', 'JPEG2000',
  'ICO', 'PPM', 'TGA', 'PCX', 'DDS', 'SGI', 'ICNS', 'MPO', 'XBM', 'IM', 'MSP',
)  # fmt: skip


def _images(folder: Path) -> None:
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (24, 32, 3), np.uint8)
  image = Image.fromarray(pixels)
  try:
    import pillow_heif

    pillow_heif.register_heif_opener()
  except ImportError:
    pass
  for name in FORMATS:
    try:
      mode = '1' if name in ('XBM', 'MSP') else 'RGB'
      image.convert(mode).save(folder / f'a.{name.lower()}', name)
    except (OSError, ValueError, KeyError):  # not in this Pillow
      (folder / f'a.{name.lower()}').unlink(missing_ok=True)
  exif = Image.Exif()
  exif[0x0112] = 6
  exif[0x010E] = 'a description'
  image.save(folder / 'exif.jpg', exif=exif)
  image.save(folder / 'exif.png', exif=exif)
  image.save(folder / 'exif.webp', exif=exif)
  image.quantize(16).save(folder / 'palette.png', transparency=b'\0\x80\xff')
  image.quantize(4).save(folder / 'palette.gif', transparency=1)
  image.convert('LAB').save(folder / 'lab.tiff')
  image.convert('CMYK').save(folder / 'cmyk.jpg')
  image.convert('YCbCr').save(folder / 'ycbcr.tiff')
  image.convert('LA').save(folder / 'la.png')
  image.convert('RGBA').save(folder / 'rgba.png')
  image.convert('F').save(folder / 'float.tiff')
  Image.fromarray(rng.integers(0, 65_536, (9, 9), np.uint16)).save(
    folder / 'sixteen.png'
  )
  frames = [image.rotate(90 * i) for i in range(3)]
  for name in ('animated.gif', 'animated.png', 'animated.webp', 'pages.tiff'):
    frames[0].save(folder / name, save_all=True, append_images=frames[1:])
  for name in ('thin', 'wide'):
    size = (1, 9000) if name == 'thin' else (9000, 1)
    Image.new('RGB', size).save(folder / f'{name}.png')


def _read_images(folder: Path, random: Random) -> None:
  from clip_jax.data.decoding import decode
  from clip_jax.data.images import preprocess
  from clip_jax.data.preprocessing import Preprocessing
  from clip_jax.evaluation.near_duplicates.perceptual_hash import (
    hash_spectra,
    spectrum,
  )

  options = [
    Preprocessing(
      image_size=32,
      resize_mode=random.choice(('shortest', 'squash', 'longest')),
      background=random.choice((None, 'white')),
      exif=random.random() < 0.5,
      convention=convention,
    )
    for convention in ('open_clip', 'transformers')
  ]
  for path in _damaged(folder, random):
    for preprocessing in options:
      pixels = preprocess(path, preprocessing)
      assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8
    hash_spectra([spectrum(decode(path))])


def _damaged(folder: Path, random: Random) -> list[Path]:
  """What differs from the good files, which the worker leaves beside."""
  good = folder.parent / 'good'
  result = []
  for path in sorted(folder.rglob('*')):
    twin = good / path.relative_to(folder)
    if path.is_file() and not path.is_symlink() and twin.is_file():
      if path.stat().st_size != twin.stat().st_size or (
        path.stat().st_size < 2**24 and path.read_bytes() != twin.read_bytes()
      ):
        result.append(path)
    elif not path.is_dir() or not twin.is_dir():
      result.append(path)
  return result


# Data sets.


def _read_source(spec: str) -> Callable[[Path, Random], None]:
  def read(folder: Path, random: Random) -> None:
    from clip_jax.data.decoding import CorruptImageError
    from clip_jax.data.images import preprocess
    from clip_jax.data.preprocessing import Preprocessing
    from clip_jax.data.sources import open_source
    from clip_jax.evaluation.dataset import data_identity

    os.environ['TFDS_DATA_DIR'] = str(folder)
    source = open_source(spec.replace('{}', str(folder)))
    for i in range(min(len(source), 12)):
      source.id(i)
      source.captions(i)
      try:
        preprocess(source[i]['image'], Preprocessing(image_size=16))
      except CorruptImageError:
        continue
    for _, _ in zip(source.texts(), range(50), strict=False):
      pass
    data_identity(source)

  return read


def _captioned(folder: Path) -> None:
  from tests.data.images import captioned_folder

  captioned_folder(folder, 4)


def _classes(folder: Path) -> None:
  from tests.data.images import write_images

  write_images(folder, ['a_b/1.png', 'a_b/2.png', 'c/1.png', 'c/2.jpg'])


def _csv(folder: Path) -> None:
  from tests.data.images import write_images

  write_images(folder, ['a.png', 'b.png'])
  (folder / 'table.csv').write_text(
    'image,caption\na.png,"one, two"\nb.png,three\na.png,"a ""quote"""\n'
  )


def _tfds(folder: Path) -> None:
  """Digits under a name that does not build itself; the smaller split."""
  from clip_jax.data.built_in import build

  built = Path(build('digits', str(folder / 'whole')))
  small = folder / 'figures' / built.name
  small.mkdir(parents=True)
  for path in built.iterdir():
    if 'train' not in path.name:
      shutil.move(path, small / path.name.replace('digits', 'figures'))
  info = json.loads((small / 'dataset_info.json').read_text())
  info |= {'name': 'figures', 'splits': info['splits'][1:]}
  (small / 'dataset_info.json').write_text(json.dumps(info))
  shutil.rmtree(folder / 'whole')


def _parquet_files(folder: Path) -> None:
  """Columns of several types and layouts, in pages of several codecs."""
  import pyarrow as pa
  import pyarrow.parquet as pq

  from tests.data.sources.tables import hugging_face_rows, rows

  texts = [['a', None], [], None, ['b']] * 3
  several = rows(12, caption=texts, label=['x', 'y', None] * 4)
  for i, (content, options) in enumerate(
    (
      (several, {'compression': 'zstd', 'row_group_size': 5}),
      (several, {'compression': 'snappy', 'use_dictionary': False}),
      (
        several,
        {'compression': 'none', 'data_page_version': '2.0',
         'write_page_index': True, 'data_page_size': 2000},
      ),
    )
  ):  # fmt: skip
    pq.write_table(pa.table(content), folder / f'{i}.parquet', **options)
  (folder / 'structs').mkdir()
  pq.write_table(
    pa.table(hugging_face_rows(12)), folder / 'structs/x.parquet',
    compression='gzip', row_group_size=6,
  )  # fmt: skip


def _arrow_files(folder: Path) -> None:
  import pyarrow as pa

  from tests.data.sources.tables import (
    LABEL_FEATURES,
    hugging_face_rows,
    save_to_disk,
  )

  content = hugging_face_rows(12)
  save_to_disk(folder / 'saved', content, LABEL_FEATURES)
  table = pa.table(content)
  for codec in ('lz4', 'zstd'):
    (folder / codec).mkdir()
    options = pa.ipc.IpcWriteOptions(compression=codec)
    path = folder / codec / 'x.arrow'
    with pa.ipc.new_file(path, table.schema, options=options) as file:
      file.write_table(table, max_chunksize=5)


def _array_records(folder: Path) -> None:
  from tests.data.sources.test_arrayrecord import example, write

  for i in range(2):
    records = [example(j, label=j) for j in range(5)]
    write(folder / f'{i}.array_record', records)


def _read_any(*specs: str) -> Callable[[Path, Random], None]:
  """Reads one of several data sets, each as often."""

  def read(folder: Path, random: Random) -> None:
    _read_source(random.choice(specs))(folder, random)

  return read


def _text_lines(folder: Path) -> None:
  (folder / 'texts.txt').write_text('red cat\n\nü\nlong line ' * 20)


def _read_text_lines(folder: Path, random: Random) -> None:
  from clip_jax.data.text_lines import TextLines

  lines = TextLines(folder / 'texts.txt')
  assert len(list(lines)) == len(lines.numbers)


# Embeddings.


def _rows() -> Any:
  from tests.inference.tables import unit_rows

  return unit_rows(0, 40)


def _table(suffix: str) -> Callable[[Path], None]:
  def make(folder: Path) -> None:
    from tests.inference.tables import write_table

    kinds = ['image'] * 30 + ['text'] * 10
    about = {'origin': 'x', 'model': 'y', 'corrupt': {}, 'truncated': 0}
    path = folder / f'e{suffix}'
    write_table(path, _rows(), kinds=kinds, about=about)

  return make


def _odd_table(folder: Path) -> None:
  """Parquet whose columns are not as `embed` writes them."""
  import pyarrow as arrow
  import pyarrow.parquet as parquet

  vector = arrow.list_(arrow.float32(), 4)
  rows = [[0.5] * 4, None, [float('nan')] * 4, [0.1, None, 0.2, 0.3]]
  tables = {
    'nulls': {
      'id': arrow.array(['a', None, 'c', 'd']),
      'kind': arrow.array(['image', None, 'text', 'image']),
      'caption': arrow.array([None, 'x', '', 'y']),
      'embedding': arrow.array(rows, vector),
    },
    'numbers': {
      'id': arrow.array([1, 2]),
      'kind': arrow.array([1.0, 2.0]),
      'caption': arrow.array([b'\xff', b'x']),
      'embedding': arrow.array([[1, 2]] * 2, arrow.list_(arrow.int64(), 2)),
    },
    'words': {
      'id': arrow.array(['a']),
      'kind': arrow.array(['image']),
      'caption': arrow.array(['x']),
      'embedding': arrow.array([['a']], arrow.list_(arrow.string(), 1)),
    },
    'empty': {
      'id': arrow.array([], arrow.string()),
      'kind': arrow.array([], arrow.string()),
      'caption': arrow.array([], arrow.string()),
      'embedding': arrow.array([], arrow.list_(arrow.float32(), 0)),
    },
  }
  for name, columns in tables.items():
    table = arrow.table(columns, metadata={'about': '[1]'})
    parquet.write_table(table, folder / f'{name}.parquet')


def _read_table(folder: Path, random: Random) -> None:
  from clip_jax.inference.embeddings import open_embeddings
  from clip_jax.inference.nearest_in_table import search_table

  for path in sorted(folder.glob('*')):
    try:
      with open_embeddings(path) as table:
        table.count_kinds()
        queries = np.ones((2, table.dims), np.float32)
        for kind in (None, 'image'):
          nearest = search_table(table, queries, kind=kind, top=3)
          table.entries(set(nearest.rows.ravel().tolist()))
        assert isinstance(table.about, dict)
    except OURS:
      if len(list(folder.glob('*'))) == 1:
        raise


def _index(folder: Path) -> None:
  _table('.npz')(folder)
  _read_index(folder, Random(0))


def _read_index(folder: Path, random: Random) -> None:
  from clip_jax.inference.embeddings import open_embeddings
  from clip_jax.inference.nearest_in_table import ApproximateIndex

  with open_embeddings(folder / 'e.npz') as table:
    index = ApproximateIndex(table, 'image', say=lambda line: None)
    queries = np.ones((2, table.dims), np.float32)
    nearest = index.search(queries, top=3)
    assert nearest.rows.max() < table.rows


def _parts(folder: Path) -> None:
  from clip_jax.inference.embed_folder import Division, EmbedFolder, RowNotes

  waiting = EmbedFolder(folder / 'e.npz')
  with waiting.begin(_IDENTITY, Division(5, 3, 2)):
    for shard in waiting.shards:
      notes = RowNotes(
        ids=[f'{shard.kind}{i}' for i in range(len(shard))],
        captions=['c'] * len(shard),
        digests='00' * 16 * len(shard),
        corrupt={},
        truncated=0,
      )
      waiting.write(shard, notes, np.ones((len(shard), 4), np.float32))


def _read_parts(folder: Path, random: Random) -> None:
  from clip_jax.inference.embed_folder import Division, EmbedFolder

  waiting = EmbedFolder(folder / 'e.npz')
  with waiting.begin(_IDENTITY, Division(5, 3, 2)), waiting.lock_worker(0, 1):
    for shard in waiting.done():
      waiting.read_notes(shard)
      waiting.read_dims(shard)
      rows = waiting.read_rows(shard)
      assert len(rows.ids) == len(rows.vectors) == len(rows.captions)


_IDENTITY = {'version': 1, 'model': 'x', 'records': 5}


# Run directories and evaluations.


def _run_files(folder: Path) -> None:
  from clip_jax.training.metrics import MetricsFile
  from tests.tiny import tiny_config

  text = json.dumps(json.loads(tiny_config().to_json_best_effort()))
  (folder / 'config.json').write_text(text)
  with MetricsFile(folder) as writer:
    for step in range(1, 6):
      numbers = {'train/loss': 3.0 / step, 'train/grad_norm': float('nan')}
      writer.write(step, numbers | {'eval/zero_shot/top1': 0.1 * step})


def _read_run_files(folder: Path, random: Random) -> None:
  from clip_jax.evaluation.suite.selection import training_data
  from clip_jax.report import facts
  from clip_jax.report.curves import draw_curves
  from clip_jax.report.training import _read_config
  from clip_jax.training import saved_config
  from clip_jax.training.config import Config
  from clip_jax.training.metrics import MetricsFile, read_metrics, series
  from clip_jax.training.workdir import Workdir
  from tests.tiny import tiny_config

  training_data(folder)
  rows = read_metrics(folder)
  series(rows, 'train/loss')
  stored = _read_config(folder)
  facts.main_settings(stored)
  facts.headline(rows, stored, 1)
  facts.setting(stored, 'data.train')
  if random.random() < 0.2:
    draw_curves(rows, stored)
  with MetricsFile(folder) as writer:
    writer.truncate_after(3)
  config = tiny_config()
  saved_config.check_saved_config(Workdir(folder, folder), config)
  del Config


def _suite_result(folder: Path) -> None:
  from clip_jax.evaluation.suite import stored

  stored.write(folder, _a_result())


def _a_result() -> Any:
  from clip_jax.evaluation.suite.plan import Pair
  from clip_jax.evaluation.suite.stored import Result

  row = {'given': 'a', 'right': 'b', 'times': 2, 'examples': []}
  tables = {'confusions': [row]}
  records = [{'id': 'x', 'label': 'a'}]
  metrics = {'top1': 0.5, 'top5': 0.75}
  pair = Pair('digits', 'zero_shot')
  return Result(pair, {'seed': 0}, metrics, records, {}, tables, 1.0)


def _read_suite_result(folder: Path, random: Random) -> None:
  from clip_jax.evaluation.datasets.table import DATASETS
  from clip_jax.evaluation.suite import stored
  from clip_jax.evaluation.suite.collected import (
    SuiteCall,
    collect,
    warnings_of,
  )
  from clip_jax.evaluation.suite.plan import Pair, Plan
  from clip_jax.evaluation.suite.spreadsheet import to_csv
  from clip_jax.report.suite import render

  pair = Pair('digits', 'zero_shot')
  result = stored.read(folder, pair, {'seed': 0})
  if result is None:
    return
  plan = Plan((pair,), {})
  collected = collect(SuiteCall('m', 'c'), plan, [result], DATASETS)
  warnings_of(collected)
  to_csv(collected)
  if random.random() < 0.2:
    render(collected, {})


def _bias_designs(folder: Path) -> None:
  content = {
    'source': 'x',
    'own': {'group': ['{groups}']},
    'thieves': {'group': ['{groups}'], 'crime-related': ['thief', 'a']},
  }
  (folder / 'designs.json').write_text(json.dumps(content))


def _read_bias_designs(folder: Path, random: Random) -> None:
  from clip_jax.evaluation.tasks.bias_designs import candidates, read_designs

  designs = read_designs(folder / 'designs.json')
  candidates(designs, ['man', 'woman'])


def _baselines(folder: Path) -> None:
  lines = [f'm{i},0.{i},0.{i}' for i in range(1, 6)]
  head = 'model,reference_accuracy,shift_accuracy'
  (folder / 'b.csv').write_text('\n'.join([head, *lines]))


def _read_baselines(folder: Path, random: Random) -> None:
  from clip_jax.evaluation.shift.effective_robustness import read_baselines

  read_baselines(str(folder / 'b.csv'))


def _caches(folder: Path) -> None:
  _read_caches(folder, Random(0))


def _read_caches(folder: Path, random: Random) -> None:
  from clip_jax.data.sources import open_source
  from clip_jax.evaluation.features.cache import FeatureCache
  from clip_jax.evaluation.near_duplicates.perceptual_hash import (
    read_hashes,
  )
  from clip_jax.evaluation.types import Options
  from tests.evaluation.fakes import TableEncoder

  good = folder.parent / 'pictures'
  if not good.exists():
    _captioned(good)

  class Encoder(TableEncoder):
    def encode_image(self, images):
      return np.ones((len(list(images)), 2), np.float32)

    def encode_text(self, texts):
      return np.ones((len(list(texts)), 2), np.float32)

  source = open_source(f'folder:{good}')
  cache = FeatureCache(folder, Encoder({}, {}), {'model': 'x'})
  options = Options(cache=cache)
  features = cache.images(source, options)
  assert features.embeddings.shape == (4, 2)
  assert cache.texts(['a', 'b'], options).shape == (2, 2)
  records, hashes = read_hashes(source, options)
  assert len(records.ids) == len(hashes.bits) == 4


READERS: dict[str, Reader] = {
  'hf_model': Reader(_hugging_face_model, _load, 6),
  'hf_siglip_model': Reader(
    _copy('hf_siglip', 'config.json', 'model.safetensors',
          'preprocessor_config.json'), _load, 4),
  'sharded_model': Reader(_sharded_model, _load, 4),
  'open_clip_model': Reader(_open_clip_model, _load, 4),
  'open_clip_run': Reader(_open_clip_run, _load, 3),
  'adapter': Reader(_adapter, _load, 1, refused=True),
  'open_clip_archive': Reader(
    _copy('archives', 'open_clip_checkpoint.pt'),
    _load_file('open_clip_checkpoint.pt')),
  'openai_archive': Reader(
    _copy('archives', 'openai_torchscript.pt'),
    _load_file('openai_torchscript.pt')),
  'state_dict_archive': Reader(
    _copy('archives', 'openai_state_dict.pt'),
    _load_file('openai_state_dict.pt')),
  'legacy_pickle': Reader(_legacy_pickle, _load_file('model.pt'), refused=True),
  'big_vision': Reader(_big_vision, _load_file('model.npz'), 4),
  'run': Reader(_run, _load, 4),
  'export': Reader(_export, _read_export, 6, _reseal),
  'hf_tokenizer': Reader(_words_tokenizer, _read_tokenizer, 12),
  'charsmap_tokenizer': Reader(_charsmap_tokenizer, _read_tokenizer, 8),
  'byte_pairs': Reader(_byte_pairs, _read_tokenizer, 8),
  'siglip_tokenizer': Reader(_siglip_tokenizer, _read_tokenizer, 6),
  'open_clip_tokenizer': Reader(_open_clip_tokenizer, _read_tokenizer, 6),
  'sentencepiece': Reader(
    lambda folder: (folder / 'pieces.model').write_bytes(_pieces()),
    _read_pieces, 6),
  'tokenizer_description': Reader(_descriptions, _read_descriptions, 6),
  'pictures': Reader(_images, _read_images, 24),
  'captioned': Reader(_captioned, _read_source('folder:{}'), 4),
  'classes': Reader(_classes, _read_source('folder:{}'), 4),
  'csv': Reader(_csv, _read_source('csv:{}/table.csv'), 6),
  'tfds': Reader(_tfds, _read_source('tfds:figures#test'), 4),
  'parquet_source': Reader(
    _parquet_files,
    _read_any('parquet:{}/*.parquet', 'parquet:{}', 'hf:{}/structs'), 8,
  ),
  'arrow_source': Reader(
    _arrow_files, _read_any('hf:{}/saved', 'hf:{}/lz4', 'hf:{}/zstd'), 8,
  ),
  'array_records': Reader(_array_records, _read_source('arrayrecord:{}'), 4),
  'text_lines': Reader(_text_lines, _read_text_lines, 4),
  'npz_table': Reader(_table('.npz'), _read_table, 8),
  'parquet_table': Reader(_table('.parquet'), _read_table, 8),
  'odd_parquet': Reader(_odd_table, _read_table, 2),
  'index': Reader(_index, _read_index, 4),
  'parts': Reader(_parts, _read_parts, 6),
  'run_files': Reader(_run_files, _read_run_files, 6),
  'suite_result': Reader(_suite_result, _read_suite_result, 6),
  'bias_designs': Reader(_bias_designs, _read_bias_designs, 4),
  'baselines': Reader(_baselines, _read_baselines, 4),
  'caches': Reader(_caches, _read_caches, 6),
}  # fmt: skip
