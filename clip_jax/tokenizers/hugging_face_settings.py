"""The settings of a tokenizer in a Hugging Face directory.

`tokenizer_config.json` (and, in older repositories, `special_tokens_map.json`)
overrules the tokenizer.json beside it, as it does in transformers.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, normalizers, processors

from clip_jax.errors import FailureError
from clip_jax.files import read_object
from clip_jax.tokenizers.base import MAX_CONTEXT_LENGTH, encodable

_NAMES = ('bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask')


@dataclasses.dataclass(frozen=True)
class TokenizerSettings:
  """The settings of one directory; empty where it has no such file.

  Attributes:
    tokenizer_class: transformers' name, without 'Fast'.
    specials: tokens by 'bos', 'eos', 'pad', …
    context_length: None where no sensible limit is given.
    padding_side: 'left', 'right' or None where nothing is said.
    lower_case: letters are made small, also where the definition does not;
      None where nothing is said.
    adds: whether a bos and an eos are put around a text; None leaves that to
      the definition.
    split_specials: whether a special token in a text is only text.
  """

  tokenizer_class: str = ''
  specials: dict[str, AddedToken] = dataclasses.field(default_factory=dict)
  context_length: int | None = None
  padding_side: str | None = None
  lower_case: bool | None = None
  adds: tuple[bool, bool] | None = None
  split_specials: bool = False

  def named(self) -> dict[str, str]:
    """Returns the specials that a row is laid out with."""
    return {
      name: token.content
      for name, token in self.specials.items()
      if name in ('bos', 'eos', 'pad')
    }

  def apply(self, tokenizer: Tokenizer) -> None:
    """Changes a tokenizer.json's tokenizer to what the settings say."""
    self._lower(tokenizer)
    known = {t.content for t in tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_special_tokens(
      [
        token
        for token in self.specials.values()
        if token.content not in known
        # An id past the vocabulary has no row in the model's table.
        and tokenizer.token_to_id(token.content) is not None
      ]
    )
    self._surround(tokenizer)

  def _lower(self, tokenizer: Tokenizer) -> None:
    old = tokenizer.normalizer
    if not self.lower_case or (
      old is not None and _lowers(json.loads(old.__getstate__()))
    ):
      return
    steps = [normalizers.Lowercase(), *([] if old is None else [old])]
    tokenizer.normalizer = normalizers.Sequence(steps)

  def _surround(self, tokenizer: Tokenizer) -> None:
    if self.adds is None:
      return
    template, ids = ['$A'], []
    for name, wanted in zip(('bos', 'eos'), self.adds, strict=True):
      token = self.specials[name].content if name in self.specials else ''
      i = tokenizer.token_to_id(token)
      if wanted and i is not None:
        template.insert(0 if name == 'bos' else len(template), token)
        ids.append((token, i))
    tokenizer.post_processor = processors.TemplateProcessing(
      single=template, special_tokens=ids
    )


def read_settings(directory: Path) -> TokenizerSettings:
  """Reads the settings of a directory; FailureError if a file is damaged."""
  legacy_file = directory / 'special_tokens_map.json'
  config_file = directory / 'tokenizer_config.json'
  legacy, config = read_object(legacy_file), read_object(config_file)
  name = str(config.get('tokenizer_class') or '').removesuffix('Fast')
  adds = [config.get(f'add_{special}_token') for special in ('bos', 'eos')]
  # CLIP's specials are not optional in transformers, whatever a file says.
  explicit = any(a is not None for a in adds) and name != 'CLIPTokenizer'
  return TokenizerSettings(
    tokenizer_class=name,
    specials=_specials(legacy_file, legacy) | _specials(config_file, config),
    context_length=_length(config.get('model_max_length')),
    padding_side=config.get('padding_side'),
    # SigLIP 2 was trained on small letters; this class is all that says so.
    lower_case=name == 'Siglip2Tokenizer' or config.get('do_lower_case'),
    adds=(bool(adds[0]), bool(adds[1])) if explicit else None,
    split_specials=config.get('split_special_tokens') is True,
  )


def _length(longest: Any) -> int | None:
  """Returns the context length, or None of a file that says 10**30 or so."""
  if isinstance(longest, int | float) and 1 <= longest <= MAX_CONTEXT_LENGTH:
    return int(longest)
  return None


def _specials(file: Path, config: dict[str, Any]) -> dict[str, AddedToken]:
  specials = {}
  for name in _NAMES:
    token = config.get(f'{name}_token')
    flags = {}
    if isinstance(token, dict):  # a token with its flags
      flags = {
        flag: bool(token[flag])
        for flag in ('single_word', 'lstrip', 'rstrip', 'normalized')
        if flag in token
      }
      token = token.get('content')
    if isinstance(token, str) and token:
      if encodable(token) != token:
        raise FailureError(f'{file}: {name}_token is {token!r}, no Unicode.')
      specials[name] = AddedToken(token, special=True, **flags)
  return specials


def _lowers(normalizer: dict[str, Any]) -> bool:
  if normalizer['type'] == 'Sequence':
    return any(map(_lowers, normalizer['normalizers']))
  return normalizer['type'] == 'Lowercase' or bool(normalizer.get('lowercase'))
