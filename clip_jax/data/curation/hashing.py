"""Hashes that decide: the same for a row and a seed on any engine."""

import hashlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt64

KEY_BYTES = 16


def hash_texts(texts: Iterable[str]) -> UInt64[np.ndarray, ' N']:
  """Returns 64 bits of the BLAKE2b hash of each text."""
  digest = hashlib.blake2b
  joined = b''.join(
    digest(text.encode('utf-8', 'surrogatepass'), digest_size=8).digest()
    for text in texts
  )
  return np.frombuffer(joined, '<u8')


def hash_keys(keys: Iterable[bytes]) -> list[bytes]:
  """Returns 128 bits of the BLAKE2b hash of each key."""
  digest = hashlib.blake2b
  return [digest(key, digest_size=KEY_BYTES).digest() for key in keys]


def upper_half(keys: Iterable[bytes]) -> UInt64[np.ndarray, ' N']:
  """Returns the first 64 bits of keys of 128."""
  return np.frombuffer(b''.join(keys), '<u8')[::2]


def mix(values: UInt64[np.ndarray, ' N']) -> UInt64[np.ndarray, ' N']:
  """Returns numbers that look random: the end of SplitMix64, a bijection."""
  values = values + np.uint64(0x9E3779B97F4A7C15)
  values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return values ^ (values >> np.uint64(31))


def draw(
  seed: int,
  ids: UInt64[np.ndarray, ' N'],
  queries: UInt64[np.ndarray, ' N'],
) -> UInt64[np.ndarray, ' N']:
  """Returns a random number for each pair of an id and a query.

  It is a function of the seed, the id and the query alone, and below 2^64 - 1.
  """
  start = mix(np.array([seed % 2**64], np.uint64))
  drawn = mix(mix(queries ^ start) ^ ids)
  return np.minimum(drawn, np.uint64(2**64 - 2))
