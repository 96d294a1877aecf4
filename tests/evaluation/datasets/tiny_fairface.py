"""FairFace as it comes: images in two folders, beside each its table."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

# Age, gender, race.
FACES = (
  ('3-9', 'Female', 'East Asian'),
  ('more than 70', 'Male', 'Latino_Hispanic'),
  ('20-29', 'Male', 'East Asian'),
)


def write(root: Path, faces: Sequence[tuple[str, str, str]] = FACES) -> None:
  """The same faces for training and validation; face i is of grey level i."""
  folder = root / 'fairface'
  for split in ('train', 'val'):
    (folder / split).mkdir(parents=True)
    lines = ['file,age,gender,race,service_test']
    for i, face in enumerate(faces):
      file = f'{split}/{i + 1}.jpg'
      # Without loss, so that levels stay as they are.
      Image.new('L', (4, 4), i).save(folder / file, 'PNG')
      lines.append(','.join((file, *face, 'True')))
    table = folder / f'fairface_label_{split}.csv'
    table.write_text('\n'.join(lines))
