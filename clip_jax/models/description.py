"""The description of a model, as plain data: what its arrays do not tell."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from clip_jax.data.preprocessing import Preprocessing
from clip_jax.errors import UsageError
from clip_jax.models.config import CLIPConfig

# How messages name the towers of a model that has one of them only.
OTHER_TOWER = {'image': 'text', 'text': 'image'}
WITH_ARTICLE = {'image': 'an image', 'text': 'a text'}


_DECODER_LEFT_OUT = (
  'The caption decoder was left out: what was written holds both encoders.'
)
_UNTRAINED_TEXT = (
  ' Its text encoder was not trained, as the model learned captions alone.'
)


@dataclasses.dataclass(frozen=True)
class Description:
  """The description of a model, which travels with its arrays.

  Attributes:
    model: the shapes of both towers, and their options.
    tokenizer: what `Tokenizer.describe()` gives; None where the files of a
      published model came without one.
    preprocessing: how images become pixels.
    absent: the towers, 'image' or 'text', that the arrays do not have; what
      the other fields say of them has no meaning.

  Raises:
    UsageError: the pixels would neither be square nor the tower's patches.
  """

  model: CLIPConfig
  tokenizer: Mapping[str, Any] | None
  preprocessing: Preprocessing
  absent: tuple[str, ...] = ()

  def __post_init__(self):
    if not self.preprocessing.is_native:
      _ = self.preprocessing.side
      return
    own = getattr(self.model.image, 'patch_size', None)
    if self.preprocessing.patch_size != own:
      raise UsageError(
        'images of native aspect (NaFlex) are split into patches of '
        f'{self.preprocessing.patch_size} pixels, and the image tower '
        + ('is a ResNet.' if own is None else f'reads those of {own}.')
      )

  def without_decoder(
    self, variables: Mapping[str, Any]
  ) -> tuple['Description', dict[str, Any], list[str]]:
    """Returns the two encoders alone, for what has no form of a decoder.

    Args:
      variables: of the model; not changed.
    Returns:
      Their description, their variables, and a line for the user where there
      was a decoder.
    """
    decoder = self.model.decoder
    if decoder is None:
      return self, dict(variables), []
    params = {k: v for k, v in variables['params'].items() if k != 'decoder'}
    model = dataclasses.replace(self.model, decoder=None)
    line = _DECODER_LEFT_OUT + (_UNTRAINED_TEXT if decoder.only else '')
    description = dataclasses.replace(self, model=model)
    return description, {**variables, 'params': params}, [line]

  def to_dict(self) -> dict[str, Any]:
    """Returns nested plain data, for JSON."""
    return {
      'model': self.model.to_dict(),
      'tokenizer': None if self.tokenizer is None else dict(self.tokenizer),
      'preprocessing': self.preprocessing.to_dict(),
    }

  @classmethod
  def from_dict(cls, fields: Any) -> 'Description':
    """Makes a description of what `to_dict` gives.

    Raises:
      UsageError: a part is missing or is no description of it.
    """
    for part in ('model', 'tokenizer', 'preprocessing'):
      value = fields.get(part) if isinstance(fields, Mapping) else None
      optional = part == 'tokenizer' and value is None
      if not isinstance(value, Mapping) and not optional:
        raise UsageError(f'the description of a model has no {part!r}.')
    return cls(
      model=CLIPConfig.from_dict(fields['model']),
      tokenizer=fields['tokenizer'],
      preprocessing=Preprocessing.from_dict(dict(fields['preprocessing'])),
    )
