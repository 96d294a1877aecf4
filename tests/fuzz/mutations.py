"""Seeded damage to the files of a folder, of the kinds that readers meet.

Bytes are cut, flipped, spliced; numbers in binary headers and values in JSON
become absurd, also inside of archives, whose checksums are made right again;
files become pipes, devices and folders.
"""

import base64
import binascii
import io
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

_DEEP = '\ue000deep\ue000'  # stands for a deep nesting until JSON is text
_LARGE = 8 * 2**30  # bytes; such a file has holes, and takes no space
_NUMBERS = (0, -1, 1, 2, 255, 65_536, 10**7, 10**9, 2**31, 2**32 - 1, 2**63)


def damage(folder: Path, random: Random) -> str:
  """Damages one to three times what lies in a folder; says what was done."""
  done = []
  for _ in range(random.choice((1, 1, 1, 2, 3))):
    files = [
      path
      for path in sorted(folder.rglob('*'))
      if path.is_file() and not path.is_symlink()
      if path.stat().st_size < _LARGE
    ]
    if not files:
      break
    path = random.choice(files)
    if random.random() < 0.15:
      how = random.choice(_PATHS)
      how(path, random)
    else:
      data = path.read_bytes()
      how = _content
      path.write_bytes(changed(data, random))
    done.append(f'{how.__name__.strip("_")} {path.relative_to(folder)}')
  return ', '.join(done)


def changed(data: bytes, random: Random) -> bytes:
  """Other bytes: in the data's own structure where one is known."""
  if random.random() < 0.65:
    for structured in _STRUCTURES:
      try:
        result = structured(data, random)
      except Exception:  # it was damaged before
        continue
      if result is not None:
        return result
  return random.choice(_BYTES)(data, random)


# What a path may lead to in the place of a file.


def _missing(path: Path, random: Random) -> None:
  path.unlink()


def _pipe(path: Path, random: Random) -> None:
  path.unlink()
  os.mkfifo(path)


def _folder(path: Path, random: Random) -> None:
  path.unlink()
  path.mkdir()


def _device(path: Path, random: Random) -> None:
  path.unlink()
  path.symlink_to(random.choice(('/dev/zero', '/dev/null', '/dev/full')))


def _link(path: Path, random: Random) -> None:
  path.unlink()
  path.symlink_to(random.choice((path.name, 'nowhere', '.', '/proc/self/mem')))


def _large(path: Path, random: Random) -> None:
  os.truncate(path, _LARGE)


def _odd_name(path: Path, random: Random) -> None:
  """A twin, or a twin of its folder, whose name ends badly for a parser."""
  old = random.choice((path, path.parent))
  name = random.choice(('²', '٣', '-1', '9' * 30, 'a\nb\x1b[2J', b'\xff', ' '))
  new = os.path.join(os.fsencode(old.parent), os.fsencode(name))
  if os.path.exists(new) or old.parent in (old, Path('/')):
    return
  if old is path and old.is_file():
    shutil.copy(old, new)
  else:
    os.mkdir(new)


_PATHS = (_missing, _pipe, _folder, _device, _link, _large, _odd_name)


# What may become of any bytes.


def _cut(data: bytes, random: Random) -> bytes:
  return data[: _place(data, random)]


def _cut_front(data: bytes, random: Random) -> bytes:
  return data[_place(data, random) :]


def _flip(data: bytes, random: Random) -> bytes:
  content = bytearray(data)
  for _ in range(random.choice((1, 1, 2, 8, 64))):
    if content:
      content[_place(data, random) % len(content)] ^= 1 << random.randrange(8)
  return bytes(content)


def _overwrite(data: bytes, random: Random) -> bytes:
  start, size = _place(data, random), random.choice((1, 4, 16, 300))
  new = random.choice((bytes(size), b'\xff' * size, random.randbytes(size)))
  return data[:start] + new + data[start + size :]


def _insert(data: bytes, random: Random) -> bytes:
  place, size = _place(data, random), random.choice((1, 3, 64, 5000))
  return data[:place] + random.randbytes(size) + data[place:]


def _remove(data: bytes, random: Random) -> bytes:
  start = _place(data, random)
  return data[:start] + data[start + random.choice((1, 4, 30, 1000)) :]


def _repeat(data: bytes, random: Random) -> bytes:
  start = _place(data, random)
  piece = data[start : start + random.choice((1, 16, 1000))]
  return data[:start] + piece * random.choice((2, 50)) + data[start:]


def _splice(data: bytes, random: Random) -> bytes:
  return data[: _place(data, random)] + data[_place(data, random) :]


def _false_number(data: bytes, random: Random) -> bytes:
  """A number in a header that claims something absurd."""
  number = random.choice(_NUMBERS)
  size = random.choice((2, 4, 8))
  order = random.choice(('little', 'big'))
  raw = (number % 2 ** (8 * size)).to_bytes(size, order)
  place = random.choice((0, 4, 8, 16, _place(data, random)))
  return data[:place] + raw + data[place + size :]


def _nothing(data: bytes, random: Random) -> bytes:
  return b''


def _something_else(data: bytes, random: Random) -> bytes:
  return random.choice(
    (
      b'\0' * 4096, b'[' * 100_000, b'{"a":' * 100_000, b'null', b'[]',
      b'"text"', b'NaN', b'1e999', b'PK\3\4', b'\x80\x02}.', b'PAR1',
      b'\xff\xfe\0\0', b'\x93NUMPY\x01\0v\0{', b'version https://git-lfs', b'1',
      b'\x89PNG\r\n\x1a\n', b'\xff\xd8\xff\xe0', b'9' * 10_000,
    )
  )  # fmt: skip


_BYTES = (
  _cut, _cut_front, _flip, _flip, _overwrite, _insert, _remove, _repeat,
  _splice, _false_number, _false_number, _nothing, _something_else,
)  # fmt: skip


def _place(data: bytes, random: Random) -> int:
  """Often near the beginning or the end, where headers are."""
  size = len(data)
  near = random.choice((16, 256, size, size))
  place = random.randrange(max(1, min(near, size)))
  return place if random.random() < 0.6 else max(0, size - 1 - place)


# What may become of known structures; None where the data is of another.

Structured = Callable[[bytes, Random], bytes | None]


def _json(data: bytes, random: Random) -> bytes | None:
  if data.lstrip()[:1] not in (b'{', b'['):
    return None
  try:
    content = json.loads(data)
  except (ValueError, RecursionError):
    return None
  return to_json(changed_json(content, random))


def to_json(content: Any) -> bytes:
  """Text of JSON, whatever is in it."""
  text = json.dumps(content, ensure_ascii=True)
  depth = 200 if len(text) % 2 else 100_000
  deep = '[' * depth + ']' * depth
  return text.replace(json.dumps(_DEEP), deep).encode()


def changed_json(content: Any, random: Random) -> Any:
  """The same JSON with one to three values absurd, lost or doubled."""
  for _ in range(random.choice((1, 1, 2, 3))):
    content = _changed_node(content, random)
  return content


def _changed_node(content: Any, random: Random) -> Any:
  parents = _parents(content, random)
  if not parents:
    return _absurd(content, random)
  parent = random.choice(parents)
  key = random.choice(list(parent) if isinstance(parent, dict) else
                      range(len(parent)))  # fmt: skip
  what = random.random()
  if what < 0.12:
    del parent[key]
  elif what < 0.2 and isinstance(parent, dict):
    parent[random.choice(('', 'x' * 2000, '\x1b[31m', f'{key}_'))] = parent.pop(
      key
    )
  elif what < 0.25 and isinstance(parent, list):
    parent.insert(key, parent[key])
  else:
    parent[key] = _absurd(parent[key], random)
  return content


def _parents(content: Any, random: Random) -> list[Any]:
  """Lists and objects with something in them, at most some hundreds."""
  result, level = [], [content]
  while level and len(result) < 300:
    node = level.pop(random.randrange(len(level)))
    if isinstance(node, dict | list) and node:
      result.append(node)
      items = list(node.values()) if isinstance(node, dict) else node
      level += items if len(items) < 200 else random.sample(items, 50)
  return result


def _absurd(value: Any, random: Random) -> Any:
  if isinstance(value, str) and random.random() < 0.5:
    raw = _from_base64(value)
    if raw:
      return base64.b64encode(changed(raw, random)).decode()
    if value.lstrip()[:1] in ('{', '['):  # a file within a file
      inner = _json(value.encode('utf-8', 'replace'), random)
      return value if inner is None else inner.decode()
    return changed(value.encode('utf-8', 'replace'), random).decode('latin-1')
  if isinstance(value, int | float) and random.random() < 0.3:
    return random.choice(
      (value + 1, value - 1, -value, value * 1000, value / 2)
    )
  return random.choice(
    (
      None, True, False, '', 'x', '²', 'NaN', '../../etc/passwd', '/dev/zero',
      'a\0b', '\x1b[2J\x07', '\ud800', 'long ' * 100_000, 0, -1, 0.5, 3,
      10**7, 10**9, -(10**9), 2**31, 2**63, 10**400, 1e308, float('nan'),
      float('inf'), [], {}, [[]], [value], {'x': value}, str(value), _DEEP,
      [1, 'a', None], [0] * 3000, {'': None},
    )
  )  # fmt: skip


def _from_base64(value: str) -> bytes:
  if len(value) < 40:
    return b''
  try:
    return base64.b64decode(value, validate=True)
  except (binascii.Error, ValueError):
    return b''


def _json_lines(data: bytes, random: Random) -> bytes | None:
  lines = data.split(b'\n')
  if len(lines) < 2 or not data.startswith(b'{'):
    return None
  place = random.randrange(len(lines))
  new = _json(lines[place], random)
  if new is None:
    return None
  return b'\n'.join([*lines[:place], new, *lines[place + 1 :]])


def _zip(data: bytes, random: Random) -> bytes | None:
  if not data.startswith(b'PK'):
    return None
  try:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
      members = {name: archive.read(name) for name in archive.namelist()}
  except Exception:  # damaged before
    return None
  if not members:
    return None
  name = random.choice(list(members))
  what = random.random()
  if what < 0.8:
    members[name] = changed(members[name], random)
  elif what < 0.9:
    del members[name]
  else:
    members[random.choice(('x', '../x', f'{name}.npy', '/'))] = members[name]
  made = io.BytesIO()
  method = zipfile.ZIP_DEFLATED if what < 0.1 else zipfile.ZIP_STORED
  with zipfile.ZipFile(made, 'w', method) as archive:
    for name, content in members.items():
      archive.writestr(name, content)
  return made.getvalue()


def _npy(data: bytes, random: Random) -> bytes | None:
  if not data.startswith(b'\x93NUMPY\x01\x00'):
    return None
  (size,) = struct.unpack('<H', data[8:10])
  header, rest = data[10 : 10 + size], data[10 + size :]
  if random.random() < 0.2:
    return data[: 10 + size] + changed(rest, random)
  descr = random.choice(
    ("'<f4'", "'<f2'", "'|O'", "'<U3'", "'<f8'", "'|u1'", "'|b1'", "'<U0'",
     "'<i8'", "'<c16'", "'<M8[ns]'", "'|V0'", "'|S9'", "[('a', '<f4')]", "'x'",
     'None', "'<U1000000000'", "{'a': 1}", "'<f4'+"),
  )  # fmt: skip
  shape = random.choice(
    ('()', '(0,)', '(1,)', '(3, 4)', '(-1,)', '(1000000000, 1000000000)',
     '(9223372036854775807,)', "('a',)", '(1.5,)', '(True,)', 'None', '[3]',
     '(0, 9223372036854775807)', '(' + '1,' * 70 + ')', '(1000000000, 0)'),
  )  # fmt: skip
  order = random.choice(('False', 'True', '3'))
  fields = {'descr': descr, 'fortran_order': order, 'shape': shape}
  old = header.decode('latin-1')
  for name in random.sample(list(fields), random.choice((1, 1, 2))):
    start = old.find(f"'{name}':")
    if start < 0:
      continue
    end = old.find(", '", start + 3)
    end = old.rfind('}') if end < 0 else end
    old = f"{old[:start]}'{name}': {fields[name]}{old[end:]}"
  raw = old.strip().encode('latin-1')
  raw += b' ' * (-(len(raw) + 11) % 64) + b'\n'
  return data[:8] + struct.pack('<H', len(raw) % 65_536) + raw + rest


def _safetensors(data: bytes, random: Random) -> bytes | None:
  if len(data) < 10 or data[8:9] != b'{':
    return None
  size = int.from_bytes(data[:8], 'little')
  header = _json(data[8 : 8 + size], random)
  if header is None:
    return None
  return len(header).to_bytes(8, 'little') + header + data[8 + size :]


def _text(data: bytes, random: Random) -> bytes | None:
  """Lines and fields swapped for others, numbers for absurd ones."""
  if len(data) > 2**20 or b'\0' in data:
    return None
  try:
    lines = data.decode('utf-8').split('\n')
  except UnicodeDecodeError:
    return None
  place = random.randrange(len(lines))
  words = random.choice(
    ('"', '\0', '\x1b[2J', ',,,,', 'a b c', '²', '\ud800', 'x' * 200_000, '-1',
     ' ', '\r', '\u2028', '\t', '1e999', 'nan', '"a\nb', '{}', '{0.__class__}',
     '/dev/zero', '../../x', str(10**9), 'ſ' * 5000),
  )  # fmt: skip
  line = lines[place]
  cut = random.randrange(len(line) + 1)
  lines[place] = random.choice((words, line[:cut] + words + line[cut:], ''))
  if random.random() < 0.1:
    lines *= 50
  return '\n'.join(lines).encode('utf-8', 'surrogatepass')


def _content() -> None:
  """Only its name is used: the content was changed."""


_STRUCTURES: tuple[Structured, ...] = (
  _json, _json_lines, _zip, _npy, _safetensors, _text,
)  # fmt: skip
