"""Prepares data sets: one file for each action.

usage:
  clip-jax data ACTION …

examples:
  clip-jax data inspect folder:images --out=sheet.png
  clip-jax data dedup folder:images --out=keep.txt
  clip-jax data build --help

A data set is named by a SPEC: tfds:NAME[#SPLIT], folder:PATH[#SPLIT], csv:PATH,
wds:PATTERN, or another of clip_jax/data/README.md. A folder has a sub-folder a
class, or .txt captions beside its images; a split is a sub-folder, as in
folder:pets#train.
"""

from absl import flags

# Each is a file of commands/, such as data_build.py, with flags of its own.
ACTIONS = {
  'build': 'write any data set as ArrayRecord or WebDataset shards',
  'index': 'make the index of tars, or of many Parquet files',
  'inspect': 'count what a data set holds, and draw a contact sheet',
  'fetch': 'fetch the images of lists of URLs into shards',
  'tokenizer': 'train a tokenizer on captions',
  'curate': 'make a collection of pairs, balanced over queries',
  'dedup': 'find the images that are copies of others',
}


def define_flags(values: flags.FlagValues) -> None:
  """Adds no flag: each action has its own."""
