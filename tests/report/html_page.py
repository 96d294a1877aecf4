"""A page of ours, read back as a browser reads it."""

import html.parser
import re

VOID = {'meta', 'img', 'br', 'hr', 'link', 'input'}


class Page(html.parser.HTMLParser):
  """Elements with their attributes; refuses what is not well formed."""

  def __init__(self, text):
    super().__init__(convert_charrefs=True)
    self.elements, self.open, self.texts = [], [], []
    self.feed(text)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    names = [name for name, _ in attrs]
    assert len(names) == len(set(names)), (tag, attrs)
    self.elements.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag, (tag, self.getpos())

  def handle_data(self, data):
    self.texts.append(data)

  def tags(self, name):
    return [attrs for tag, attrs in self.elements if tag == name]

  def text(self, separator=''):
    return re.sub(r'\s+', ' ', separator.join(self.texts))
