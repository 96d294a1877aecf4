"""Reads what a site allows: robots.txt (RFC 9309) and X-Robots-Tag headers."""

import dataclasses
import re
import urllib.parse
from collections.abc import Iterable

# The part of a robots.txt that is read; RFC 9309 asks for this much at least.
MAX_ROBOTS_BYTES = 512 * 1024
# Directives by which a site says that its images are not to be used so.
DISALLOWING = ('noai', 'noimageai', 'noindex', 'noimageindex', 'none')
# Directives of X-Robots-Tag that have a value: other words before a colon are
# names of robots.
_WITH_VALUE = (
  'unavailable_after', 'max-snippet', 'max-image-preview', 'max-video-preview',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Rule:
  """A line of robots.txt: the parts of its pattern between asterisks."""

  parts: tuple[str, ...]
  to_end: bool
  allow: bool
  length: int

  def matches(self, path: str) -> bool:
    """Returns whether a path matches; in linear time, as patterns are hostile.

    Each part is sought behind the one before, which finds a match if there is
    one.
    """
    first, *rest = self.parts
    if not path.startswith(first):
      return False
    position = len(first)
    if not rest:
      return not self.to_end or position == len(path)
    last = rest.pop() if self.to_end else ''
    for part in rest:
      start = path.find(part, position)
      if start < 0:
        return False
      position = start + len(part)
    return path.endswith(last) and len(path) - len(last) >= position


class Robots:
  """The rules of one robots.txt for one robot."""

  def __init__(self, text: str, agent: str):
    """Parses the text; lines that are no rules are left out.

    Args:
      agent: the robot's product token, such as 'clip-jax'.
    """
    groups = list(_groups(text))
    own = [rules for names, rules in groups if agent.lower() in names]
    if not own:
      own = [rules for names, rules in groups if '*' in names]
    # Of the rules that match, the longest holds; of two, the one that allows.
    self._rules = sorted(
      (rule for rules in own for rule in rules),
      key=lambda rule: (rule.length, rule.allow),
      reverse=True,
    )

  def allows(self, url: str) -> bool:
    """Returns whether a URL may be fetched."""
    parts = urllib.parse.urlsplit(url)
    query = f'?{parts.query}' if parts.query else ''
    path = _normal((parts.path or '/') + query)
    if path == '/robots.txt':
      return True
    rule = next((x for x in self._rules if x.matches(path)), None)
    return rule is None or rule.allow


def _groups(text: str) -> Iterable[tuple[set[str], list[_Rule]]]:
  """Yields the names of robots, in lower case, and their rules."""
  names: set[str] = set()
  rules: list[_Rule] = []
  naming = False
  for line in re.split(r'[\r\n]+', text.removeprefix('\ufeff')):
    key, colon, value = line.partition('#')[0].partition(':')
    key, value = key.strip().lower(), value.strip()
    if not colon:
      continue
    if key == 'user-agent':
      if not naming:
        if names:
          yield names, rules
        names, rules, naming = set(), [], True
      # Versions, as in 'bot/1.0', are no part of the token.
      names.add(re.split(r'[/\s]', value.lower())[0])
    elif key in ('allow', 'disallow'):
      naming = False
      if value:  # an empty 'Disallow:' forbids nothing
        rules.append(_rule(value, key == 'allow'))
  if names:
    yield names, rules


def _rule(pattern: str, allow: bool) -> _Rule:
  to_end = pattern.endswith('$')
  text = _normal(pattern.removesuffix('$'))
  return _Rule(tuple(text.split('*')), to_end, allow, len(text) + to_end)


def _normal(path: str) -> str:
  """Returns a path of which equal ones, however escaped, are the same text."""
  # Escapes that are not needed are undone, and missing ones are added.
  return urllib.parse.quote(
    re.sub(
      r'%([0-9a-fA-F]{2})',
      lambda match: (
        text
        if (text := chr(int(match[1], 16))).isascii()
        and (text.isalnum() or text in '-._~')
        else f'%{match[1].upper()}'
      ),
      path,
    ),
    safe="%/?=&:;,@+!$*'()[]~",
    errors='replace',
  )


def disallowing_directive(headers: Iterable[str], agent: str) -> str:
  """Returns the directive by which X-Robots-Tag forbids the use, or ''.

  Args:
    headers: the value of each such header of an answer, as in 'noai' or
      'otherbot: noindex, nofollow', which is of that robot alone.
    agent: our product token.
  """
  for value in headers:
    of_us = True
    for part in value.lower().split(','):
      name, colon, rest = part.partition(':')
      if colon and name.strip() not in _WITH_VALUE:
        of_us = name.strip() in (agent.lower(), '*')
        part = rest
      if of_us and part.strip() in DISALLOWING:
        return part.strip()
  return ''
