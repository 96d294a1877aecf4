"""Messages are lines that a terminal can show."""

from clip_jax.errors import (
  FailureError,
  UsageError,
  one_line,
  print_notes,
  print_warnings,
)


def test_control_characters_and_broken_names_are_escaped():
  text = 'a\x1b[31m\nb\0\udcff ü 中'
  assert one_line(text) == r'a\x1b[31m b\x00\udcff ü 中'
  for kind in (UsageError, FailureError):
    assert str(kind(text)) == one_line(text)


def test_a_long_message_keeps_its_beginning_and_its_end():
  line = one_line(f'begin {"x" * 100_000} end')
  assert len(line) < 700
  assert line.startswith('begin x') and line.endswith('x end')


def test_warnings_and_notes_are_one_line_each_and_printed_once(capsys):
  print_warnings(['a\nb', 'c', 'c'])
  print_notes(line for line in ('d', 'e'))
  captured = capsys.readouterr()
  assert captured.err == 'warning: a b\nwarning: c\nnote: d\nnote: e\n'
  assert not captured.out


def test_only_line_breaks_are_taken_out_of_a_message():
  """Names that differ by a blank are told apart."""
  assert one_line("'a  b' and\n  'a b'") == "'a  b' and 'a b'"
