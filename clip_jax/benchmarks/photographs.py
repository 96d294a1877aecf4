"""Makes JPEGs that are as hard to decode as photographs are."""

import io

import numpy as np
from jaxtyping import Float
from PIL import Image

WIDTH, HEIGHT = 500, 375
QUALITY = 90


def make_photographs(count: int, seed: int = 0) -> list[bytes]:
  """Returns JPEGs of made-up scenes, 500 x 375, quality 90, 4:2:0, of 66 kB.

  As in photographs, the amplitude of a frequency f falls about as 1 / f, areas
  have edges, and the sensor adds a little noise; two photographs that come with
  scikit-learn take 35 and 65 kB at this size.
  """
  rng = np.random.default_rng(seed)
  return [_encode(_scene(rng)) for _ in range(count)]


def _encode(image: Image.Image) -> bytes:
  file = io.BytesIO()
  image.save(file, 'JPEG', quality=QUALITY, subsampling='4:2:0')
  return file.getvalue()


def _scene(rng: np.random.Generator) -> Image.Image:
  """Draws areas of one tone each, and light and colours that vary in them."""
  areas = np.floor(2 * _clouds(rng, 2.0)).astype(int)
  tones = rng.normal(size=(64, 3))[areas % 64]
  light = 115 + 30 * tones[..., 0] + 32 * _clouds(rng, 1.4)
  light += rng.normal(0, 2, light.shape)
  colours = 128 + 18 * tones[..., 1:]
  colours += 8 * np.stack([_clouds(rng, 2.0), _clouds(rng, 2.0)], axis=-1)
  pixels = np.concatenate([light[..., None], colours], axis=-1)
  pixels = np.clip(pixels, 0, 255).astype(np.uint8)
  return Image.fromarray(pixels, 'YCbCr').convert('RGB')


def _clouds(
  rng: np.random.Generator, exponent: float
) -> Float[np.ndarray, 'h w']:
  """Returns noise of amplitude 1 / f^exponent, of standard deviation 1."""
  frequency = np.hypot(
    np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None]
  )
  frequency[0, 0] = np.inf  # no mean
  phases = np.exp(2j * np.pi * rng.random(frequency.shape))
  noise = np.fft.irfft2(frequency**-exponent * phases, (HEIGHT, WIDTH))
  return noise / noise.std()
