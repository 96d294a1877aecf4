"""Makes up plain captions to compare tokenizers on, the same every time.

Words are CLIP's own, some 30,000 of English and of names, met as often as
Zipf's law has it in a language; a few are new each time, as misspellings and
handles are. So neither what a tokenizer keeps of earlier words nor the lack
of it decides the figure.
"""

import numpy as np

_ZIPF = 1.05  # the exponent, of natural language
_SHORTEST, _LONGEST = 8, 20  # words
_NEW = 0.02  # of all words
_COMMON = ('a', 'the', 'of', 'on', 'in', 'and', 'with', 'to', 'at', 'is', 'by')


def sample_captions(count: int, seed: int = 0) -> list[str]:
  """Returns captions of 8 to 20 words, some with capitals and punctuation."""
  from clip_jax.tokenizers.clip import vocabulary

  rng = np.random.default_rng(seed)
  whole = [word[:-4] for word in vocabulary() if word.endswith('</w>')]
  words = np.array(
    [
      *_COMMON,
      *(w for w in whole if w.isascii() and w.isalpha() and len(w) > 2),
    ]
  )
  weights = 1 / np.arange(1, len(words) + 1) ** _ZIPF
  lengths = rng.integers(_SHORTEST, _LONGEST + 1, count)
  drawn = rng.choice(words, lengths.sum(), p=weights / weights.sum()).tolist()
  for i in np.flatnonzero(rng.random(len(drawn)) < _NEW):
    drawn[i] += str(rng.choice(words))
  captions = []
  for end, length in zip(np.cumsum(lengths), lengths, strict=True):
    caption = ' '.join(drawn[end - length : end])
    style = rng.integers(4)
    if style == 0:
      caption = caption.capitalize() + '.'
    elif style == 1:
      caption = caption.replace(' ', ', ', 1)
    captions.append(caption)
  return captions
