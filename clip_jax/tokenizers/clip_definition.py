"""CLIP's byte-pair encoding as a tokenizer.json, as Hugging Face writes it.

Older repositories have only `vocab.json` and `merges.txt`; the rest (what a
word is, small letters, the specials around a text) is in transformers' code,
whose ids these are. They differ from the original's where a text needs repair
(mojibake, HTML entities) and where it names a special token.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tokenizers import (
  AddedToken,
  Regex,
  Tokenizer,
  decoders,
  normalizers,
  pre_tokenizers,
  processors,
)
from tokenizers.models import BPE

from clip_jax.errors import FailureError
from clip_jax.files import read_json, read_text
from clip_jax.tokenizers.definition_check import check_vocabulary

BOS, EOS = '<|startoftext|>', '<|endoftext|>'
_WORDS = (
  r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
  r'|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+'
)


def clip_definition(
  vocabulary: Mapping[str, int],
  merges: Sequence[tuple[str, str]],
  specials: Iterable[AddedToken] = (),
) -> str:
  """Returns the text of a tokenizer.json.

  Args:
    vocabulary: symbol -> id, with the two specials.
    merges: pairs, best first.
    specials: tokens that a text may name, with their flags; the two that go
      around it are always among them.
  Raises:
    KeyError: the vocabulary lacks one of the specials.
  """
  tokenizer = Tokenizer(
    BPE(
      dict(vocabulary),
      list(merges),
      unk_token=EOS,
      end_of_word_suffix='</w>',
      continuing_subword_prefix='',
    )
  )
  tokenizer.normalizer = normalizers.Sequence(
    [
      normalizers.NFC(),
      normalizers.Replace(Regex(r'\s+'), ' '),
      normalizers.Lowercase(),
    ]
  )
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(_WORDS), behavior='removed', invert=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.post_processor = processors.RobertaProcessing(
    (EOS, vocabulary[EOS]),
    (BOS, vocabulary[BOS]),
    trim_offsets=False,
    add_prefix_space=False,
  )
  tokens = {token.content: token for token in specials}
  for token in (BOS, EOS):
    tokens.setdefault(token, AddedToken(token, special=True))
  tokenizer.add_special_tokens(
    [token for content, token in tokens.items() if content in vocabulary]
  )
  return tokenizer.to_str()


def read_clip_files(directory: Path, specials: Iterable[AddedToken]) -> str:
  """Returns the definition that a vocab.json and a merges.txt make.

  Raises:
    FailureError: one of them is damaged, or has no specials.
  """
  files = directory / 'vocab.json', directory / 'merges.txt'
  vocabulary = check_vocabulary(read_json(files[0]), str(files[0]))
  lines = read_text(files[1]).split('\n')
  pairs = [
    line.split(' ')
    for line in lines
    if line and not line.startswith('#version')
  ]
  try:
    merges = [(left, right) for left, right in pairs]
    return clip_definition(vocabulary, merges, specials)
  except KeyError as error:
    raise FailureError(
      f'{files[0]} has no token {error.args[0]!r}: it is not a vocabulary of '
      'CLIP.'
    ) from error
  except Exception as error:  # the library's errors are bare `Exception`s
    reason = ' '.join(str(error).split())
    raise FailureError(
      f'{files[0]} and {files[1].name} are not the vocabulary and the merges '
      f'of CLIP, or damaged: {reason}.'
    ) from error
