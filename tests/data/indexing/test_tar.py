"""Headers of archives, sound and damaged in all ways."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.data.indexing import tar
from clip_jax.data.indexing.tar import members, reader_of
from tests.data.indexing.archives import (
  archive,
  damaged_archives,
  pairs,
  special,
  unmarked,
)


def read(data):
  return list(members(reader_of(data), len(data)))


def contents(data):
  return {
    member.name: data[member.data : member.data + member.size]
    for member in read(data)
    if member.problem is None
  }


def problems(data):
  return [
    (member.name, member.problem)
    for member in read(data)
    if member.problem is not None
  ]


NAMES = st.text(
  st.characters(codec='utf-8', exclude_characters='\0/\\', min_codepoint=33),
  min_size=1,
  max_size=300,
).filter(lambda name: name not in ('.', '..'))


@pytest.mark.parametrize('format', [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@given(
  named=st.dictionaries(NAMES, st.binary(max_size=2000), max_size=8),
  folder=st.sampled_from(['', 'a/', 'a/b.c/' + 'long' * 60 + '/']),
)
def test_names_and_contents_are_those_that_tarfile_wrote(format, named, folder):
  expected = {folder + name: content for name, content in named.items()}
  data = archive(expected, format=format)
  assert contents(data) == expected
  assert problems(data) == []


def test_the_prefix_of_a_ustar_name():
  name = '/'.join(['folder' * 10, 'b' * 60, 'name.png'])
  assert contents(archive({name: b'1'})) == {name: b'1'}


@given(damaged_archives())
def test_any_bytes_are_read_to_their_end(data):
  """Nothing is raised, and no offset is out of bounds."""
  position = 0
  for member in read(data):
    assert position <= member.start <= len(data)
    assert member.data + member.size <= len(data)
    position = member.start


@given(st.integers(1, 4000))
def test_a_cut_archive_has_all_members_before_the_cut(cut):
  whole = archive(pairs(3))
  data = whole[: min(cut, len(whole))]
  sound = contents(data)
  assert list(sound) == list(pairs(3))[: len(sound)]
  for name, content in sound.items():
    assert content == pairs(3)[name]
  assert [problem for _, problem in problems(data)] in ([], [tar.CUT_OFF])


@pytest.mark.parametrize(('cut', 'name'), [(600, '0000.png'), (1224, '')])
def test_a_cut_in_a_content_and_in_a_header(cut, name):
  assert problems(archive(pairs(3))[:cut]) == [(name, tar.CUT_OFF)]


def test_a_cut_between_two_members_is_told_by_the_missing_end():
  whole = archive(pairs(3))
  second = list(tar.members(tar.reader_of(whole), len(whole)))[1]
  for cut in (second.end, second.end - 1):  # in the padding, too
    assert problems(whole[:cut]) == [('', tar.CUT_OFF)]


def test_joined_archives_are_read_to_the_last():
  data = archive(pairs(2)) + archive(pairs(2, 2)) + bytes(512)
  assert contents(data) == pairs(4)
  assert problems(data) == []


@pytest.mark.parametrize(
  ('header', 'problem'),
  [
    (special('a.png', tarfile.SYMTYPE, linkname='../b'), tar.LINK),
    (special('a.png', tarfile.LNKTYPE, linkname='b', size=999), tar.LINK),
    (special('a.png', tarfile.FIFOTYPE), tar.DEVICE),
    (special('a.png', tarfile.CHRTYPE), tar.DEVICE),
    (special('a.png', tarfile.GNUTYPE_SPARSE), tar.SPARSE),
    (special('a.png', b'M'), tar.OTHER_TYPE),
    (special('../../a.png', tarfile.REGTYPE), tar.UNSAFE_NAME),
    (special('/etc/a.png', tarfile.REGTYPE), tar.UNSAFE_NAME),
    (special('b/..\\a.png', tarfile.REGTYPE), tar.UNSAFE_NAME),
    (special('a.png', tarfile.REGTYPE, size=2**32), tar.CUT_OFF),
    (special('a.png', tarfile.REGTYPE, size=2**80), tar.CUT_OFF),
    (special('a', b'L', size=2**32), tar.BAD_EXTENSION),
    (special('a', b'x', size=2**20 + 1), tar.BAD_EXTENSION),
    (b'junk'.ljust(512, b'!'), tar.NO_HEADER),
  ],
)
def test_what_is_damaged_is_named_and_what_follows_is_read(header, problem):
  data = unmarked(archive(pairs(1))) + header + archive(pairs(1, 1))
  assert contents(data) == pairs(2)
  name = '' if problem in NAMELESS else header.partition(b'\0')[0].decode()
  assert problems(data) == [(name, problem)]


NAMELESS = (tar.BAD_EXTENSION, tar.NO_HEADER)


@pytest.mark.parametrize(
  'values',
  [b'9 path=', b'5 a=b', b'18 size=notanumber\n', b'0 a=b\n'],
)
def test_a_damaged_extended_header(values):
  header = special('pax', b'x', size=len(values))
  data = header + values.ljust(512, b'\0') + archive(pairs(1))
  assert contents(data) == pairs(1)
  assert problems(data) == [('', tar.BAD_EXTENSION)]


def test_sparse_files_of_posix_archives():
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode='w', format=tarfile.PAX_FORMAT) as pax:
    info = tarfile.TarInfo('a.png')
    info.pax_headers = {'GNU.sparse.major': '1', 'GNU.sparse.minor': '0'}
    info.size = 600
    pax.addfile(info, io.BytesIO(bytes(600)))
  assert problems(file.getvalue()) == [('a.png', tar.SPARSE)]


@pytest.mark.parametrize('mark', [b'\x1f\x8b\x08', b'BZh9', b'\xfd7zXZ\0'])
def test_compressed_archives_are_one_problem(mark):
  assert problems(mark + bytes(range(256)) * 20) == [('', tar.COMPRESSED)]


def test_a_file_of_zeros_is_passed_over_in_chunks():
  calls = []

  def zeros(offset, length):
    calls.append(length)
    return bytes(min(length, size - offset))

  size = 2**26
  assert list(members(zeros, size)) == []
  assert len(calls) < 200


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('a/b.c/d.tar.GZ', ('a/b.c/d', 'tar.gz')),
    ('000.jpg', ('000', 'jpg')),
    ('x/000.', ('x/000', '')),
    ('.hidden.png', None),
    ('README', None),
    ('__meta__/a.png', None),
    ('a/__b__.png', ('a/__b__', 'png')),
  ],
)
def test_keys_are_those_of_webdataset(name, expected):
  assert tar.Member(name, 0, 512, 0).key_and_suffix() == expected
