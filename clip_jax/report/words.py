"""How pages write numbers."""

from markupsafe import Markup


def percent(share: float | int) -> str:
  """'56.2 %'; a share that is not 0 never reads as 0."""
  if 0 < share < 0.0005:
    return '< 0.1 %'
  return f'{100 * share:.1f} %'


def small_units(text: str) -> Markup:
  """A measured value with its units in smaller letters."""
  words = [
    Markup('{}').format(word)
    if any(c.isdigit() for c in word)
    else Markup('<small>{}</small>').format(word)
    for word in text.split(' ')
  ]
  return Markup('\N{NO-BREAK SPACE}').join(words)


def short_count(number: int) -> str:
  """'1.71 M' for 1,712,345."""
  for size, unit in ((10**9, 'B'), (10**6, 'M'), (10**3, 'k')):
    if number >= size:
      return f'{number / size:.3g} {unit}'
  return str(number)
