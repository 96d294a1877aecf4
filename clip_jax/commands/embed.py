"""Writes the embeddings of pictures, of texts, or of both to one file.

usage:
  clip-jax embed --model=REF [--images=SPEC] [--texts=FILE] --out=FILE

examples:
  clip-jax embed --model=runs/emoji --images=folder:photos --out=photos.npz
  clip-jax embed --model=runs/emoji --images=tfds:emoji#test --out=emoji.parquet
  clip-jax embed --model=REF --texts=queries.txt --out=queries.npz

A texts FILE is UTF-8 with one text a line. The output, .npz or .parquet, has a
row for each picture and text: its id (a line's is FILE:NUMBER), its kind
(image or text), its caption, and its embedding, float32 of unit length; in an
.npz the arrays ids, kinds, captions and embeddings. Pictures that cannot be
read are left out and named, up to --max_corrupt. The file appears when it is
whole.
"""

import os
import sys

from absl import flags

from clip_jax.commands import common_flags, printing
from clip_jax.errors import UsageError


def define_flags(values: flags.FlagValues) -> None:
  """Adds this verb's flags."""
  common_flags.define_model(values)
  flags.DEFINE_string(
    'images', None, 'a data set, SCHEME:LOCATION[#SPLIT]', flag_values=values
  )
  flags.DEFINE_string(
    'texts', None, 'a UTF-8 file with one text a line', flag_values=values
  )
  flags.DEFINE_string(
    'out', None, 'the file to write, .npz or .parquet', flag_values=values
  )
  common_flags.define_captions(values)
  common_flags.define_encoding(values)
  common_flags.define_json(values)


def run(values: flags.FlagValues, words: list[str]) -> None:
  """Embeds, writes, and says what was written."""
  printing.no_words('embed', words)
  reference = printing.require(
    values.model, 'model', "name a run's workdir or one of its checkpoints"
  )
  out = printing.require(values.out, 'out', 'name a .npz or .parquet file')
  if not values.images and not values.texts:
    raise UsageError('nothing to embed: give --images=SPEC, --texts=FILE.')
  lines = printing.lines_of('texts', values.texts) if values.texts else []
  if values.texts and not lines:
    raise UsageError(f'--texts: {values.texts} has no text in it.')

  import numpy as np

  from clip_jax.inference.embeddings import Embeddings, EmbeddingsFile
  from clip_jax.inference.references import recognise

  with EmbeddingsFile(out) as file:
    recognise(reference)  # before data are opened for nothing

    from clip_jax.data.sources import open_source
    from clip_jax.evaluation.pictures import Pictures
    from clip_jax.inference.classifier import check_finite
    from clip_jax.inference.loading import load

    ids: list[str] = []
    kinds: list[str] = []
    captions: list[str] = []
    vectors: list[np.ndarray] = []
    corrupt: dict[str, str] = {}
    truncated = 0
    source = None
    if values.images:
      source = open_source(values.images, captions=tuple(values.captions))
      model = load(reference, dtype=values.dtype, batch_size=values.batch_size)
    if source is not None:
      pictures = Pictures(source, values.max_corrupt)
      vectors.append(
        model.encode_image(printing.watch(pictures, len(source), 'images'))
      )
      check_finite(vectors[-1], 'image')
      corrupt = pictures.corrupt
      ids += [record['id'] for record in pictures.records]
      kinds += ['image'] * len(pictures.records)
      captions += [(r['caption'] or [''])[0] for r in pictures.records]
    if lines:
      texts = [text for _, text in lines]
      truncated = -model.tokenizer.truncated
      vectors.append(
        model.encode_text(printing.watch(texts, len(texts), 'texts'))
      )
      check_finite(vectors[-1], 'text')
      truncated += model.tokenizer.truncated
      name = os.path.basename(values.texts)
      ids += [f'{name}:{number}' for number, _ in lines]
      kinds += ['text'] * len(texts)
      captions += texts
    rows = np.concatenate(vectors)
    file.write(Embeddings(ids, kinds, captions, rows))
  printing.report_corrupt(corrupt)
  if truncated:
    print(
      f'{truncated:,} of {len(lines):,} texts were cut to '
      f'{model.config.text.context_length} tokens.',
      file=sys.stderr,
    )
  if values.json:
    printing.print_json(
      {
        'out': out,
        'images': kinds.count('image'),
        'texts': kinds.count('text'),
        'dimensions': rows.shape[1],
        'corrupt': corrupt,
        'truncated': truncated,
      }
    )
    return
  counts = ' and '.join(
    f'{kinds.count(kind):,} {kind}{"s" if kinds.count(kind) > 1 else ""}'
    for kind in ('image', 'text')
    if kind in kinds
  )
  print(f'{counts}, {rows.shape[1]} dimensions -> {out}')
