"""Small directories in the layouts of published models, and their ids.

goldens/hugging_face_tokenizers.json holds what transformers 5.23.0 and
open_clip 3.3.0 give for 159 texts: every seventh golden text of tokenizer.json
below 70 characters, special tokens and odd characters in every place, and 40
random strings of those. `siglip` is their SiglipTokenizer over a unigram
SentencePiece model of 220 pieces (pad 0, eos 1, unknown 2, no bos; identity
normalisation keeps it small) trained on the golden texts' ASCII words;
`gemma` is their GemmaTokenizer(add_bos_token=False, add_eos_token=True), saved,
over a byte-fallback BPE of 480 symbols trained by `tokenizers` on the same
texts; `siglip2` is their Siglip2Tokenizer over it. `clip_old` and
`clip_old_bang` are AutoTokenizer on the files that `write_clip` below writes.
The rows of `open_clip_*` are HFTokenizer's on the `gemma` directory and
SimpleTokenizer's, by the value of `clean`. Pads at the end are left out.
"""

import base64
import json
import pathlib

import numpy as np

from tests.tokenizers.byte_pair_reference import END, START, tables

GOLDEN = json.loads(
  (
    pathlib.Path(__file__).parents[1] / 'goldens/hugging_face_tokenizers.json'
  ).read_text('utf-8')
)
TEXTS = GOLDEN['texts']
BOS, EOS = '<|startoftext|>', '<|endoftext|>'


def golden_rows(name: str) -> np.ndarray:
  case = GOLDEN[name]
  length, pad = case['context_length'], case['pad']
  return np.array(
    [row + [pad] * (length - len(row)) for row in case['rows']], np.int32
  )


def write_json(folder: pathlib.Path, **files: dict) -> None:
  for name, content in files.items():
    (folder / f'{name}.json').write_text(json.dumps(content), 'utf-8')


def write_siglip(folder: pathlib.Path) -> None:
  model = base64.b64decode(GOLDEN['siglip']['model'])
  (folder / 'spiece.model').write_bytes(model)
  write_json(
    folder,
    tokenizer_config={
      'do_lower_case': True,
      'eos_token': '</s>',
      'model_max_length': 64,
      'pad_token': '</s>',
      'tokenizer_class': 'SiglipTokenizer',
    },
  )


def write_gemma(folder: pathlib.Path, **config) -> None:
  write_json(
    folder,
    tokenizer=GOLDEN['gemma']['tokenizer'],
    tokenizer_config={
      'bos_token': '<bos>',
      'eos_token': '<eos>',
      'pad_token': '<pad>',
      'unk_token': '<unk>',
      'model_max_length': 64,
      'tokenizer_class': 'GemmaTokenizer',
      **config,
    },
  )


def write_clip(folder: pathlib.Path, pad: str, normalized: bool) -> None:
  """As OpenAI's directories were before they had a tokenizer.json."""
  _, ids, ranks = tables()
  lines = ['#version: 0.2', *map(' '.join, ranks), '']
  (folder / 'merges.txt').write_text('\n'.join(lines), 'utf-8')
  flags = {'lstrip': False, 'rstrip': False, 'normalized': normalized}
  write_json(
    folder,
    vocab=ids | {BOS: START, EOS: END},
    tokenizer_config={
      'bos_token': {'content': BOS, **flags},
      'eos_token': {'content': EOS, **flags},
      'unk_token': {'content': EOS, **flags},
      'pad_token': pad,
      'do_lower_case': True,
      'model_max_length': 77,
      'tokenizer_class': 'CLIPTokenizer',
    },
  )
