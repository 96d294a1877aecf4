"""The embedded data set `emoji`: a TFDS builder package.

TFDS takes `emoji_dataset_builder.py`, README.md, CITATIONS.bib and TAGS.txt
from this folder; `built_in.build('emoji')` builds it.
"""
