"""What a collection must not have of an evaluation's images."""

import hashlib
import io

import numpy as np
import pytest

from clip_jax.data.curation.settings import Settings
from clip_jax.errors import FailureError
from clip_jax.evaluation.near_duplicates.curation import (
  curation_helpers,
  hash_contents,
  write_evaluation,
)
from clip_jax.evaluation.near_duplicates.perceptual_hash import (
  hash_spectra,
  spectrum,
)
from tests.evaluation.textures import texture


def encoded(image):
  file = io.BytesIO()
  image.save(file, 'PNG')
  return file.getvalue()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Three images with texture, a flat one, and one that is damaged."""
  folder = tmp_path_factory.mktemp('evaluation')
  for i in range(3):
    texture(i).save(folder / f'{i}.png')
  texture(0).point(lambda _: 90).save(folder / 'flat.png')
  (folder / 'x.png').write_bytes(encoded(texture(9))[:60])
  return folder


def test_an_image_that_cannot_be_hashed_is_flat():
  result = hash_contents([encoded(texture(1)), b'no image'], ['', ''])
  expected = hash_spectra([spectrum(texture(1))])
  assert result['hash'][0] == expected.bits[0]
  assert result['flat'].tolist() == [False, True]


def test_only_readable_images_get_more_than_digests(folder, tmp_path):
  sizes = []

  def embed(contents):
    sizes.append(len(contents))
    return np.ones((len(contents), 2), np.float32)

  spec = f'folder:{folder}'
  corrupt = write_evaluation([spec], True, embed, str(tmp_path))
  assert list(corrupt) == [f'--evaluation={spec}, x.png']
  assert 'damaged image' in corrupt[f'--evaluation={spec}, x.png']
  digests = np.load(tmp_path / 'evaluation_digests.npy')
  files = [folder / f'{name}.png' for name in (0, 1, 2, 'flat', 'x')]
  halves = {hashlib.sha256(file.read_bytes()).digest()[:16] for file in files}
  assert {digest.tobytes() for digest in digests} == halves
  assert digests.tolist() == sorted(digests.tolist())
  hashes = np.load(tmp_path / 'evaluation_hashes.npy')
  bits = hash_spectra([spectrum(texture(i)) for i in range(3)]).bits
  assert hashes.tolist() == sorted(bits.tolist())  # none of the flat one
  assert np.load(tmp_path / 'evaluation_embeddings.npy').shape == (4, 2)
  assert sizes == [4]


def test_data_without_a_readable_image_are_refused(tmp_path):
  (tmp_path / 'a.png').write_bytes(b'\x89PNG\r\n\x1a\n')
  with pytest.raises(FailureError, match='no image can be read'):
    write_evaluation([f'folder:{tmp_path}'], False, None, str(tmp_path))


def test_helpers_do_what_the_settings_ask_for(folder, tmp_path):
  helpers = curation_helpers(
    Settings(
      inputs=('a.parquet',),
      evaluation=(f'folder:{folder}',),
      evaluation_bits=4,
      near=0.9,
    ),
    None,
  )
  assert helpers.looks == (hash_contents,)
  assert helpers.evaluation == ('digests', 'hashes')
  assert not helpers.scores and helpers.find_copies is not None
  helpers.write_evaluation(str(tmp_path))
  names = {path.name for path in tmp_path.iterdir()}
  assert names == {'evaluation_digests.npy', 'evaluation_hashes.npy'}
  nothing = curation_helpers(Settings(inputs=('a.parquet',)), None)
  assert (nothing.looks, nothing.evaluation) == ((), ())
  assert nothing.find_copies is nothing.write_evaluation is None
