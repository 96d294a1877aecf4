"""The same records in every layout that a data set may have."""

import io
import pathlib
import tarfile
from collections.abc import Sequence

from clip_jax.data.sources import Record
from tests.data.sources.tables import save_to_disk, write_parquet
from tests.data.sources.test_arrayrecord import example, write


def write_layouts(
  folder: pathlib.Path, records: Sequence[Record]
) -> dict[str, str]:
  """Writes records in the order that they have; returns SPECs by scheme."""
  images = [record['image'] for record in records]
  texts = [record['caption'][0] for record in records]
  count = len(records)
  write_parquet(
    folder / 'parquet/0.parquet',
    {'image': images[: count // 3], 'caption': texts[: count // 3]},
  )
  write_parquet(
    folder / 'parquet/1.parquet',
    {'image': images[count // 3 :], 'caption': texts[count // 3 :]},
  )
  structs = [{'bytes': image, 'path': None} for image in images]
  save_to_disk(folder / 'hf', {'image': structs, 'caption': texts})
  (folder / 'images').mkdir()
  (folder / 'tars').mkdir()
  (folder / 'records').mkdir()
  for i, (image, text) in enumerate(zip(images, texts, strict=True)):
    (folder / f'images/{i:05}.png').write_bytes(image)
    (folder / f'images/{i:05}.txt').write_text(text)
  rows = [f'images/{i:05}.png,"{texts[i]}"\n' for i in range(count)]
  (folder / 'table.csv').write_text(f'image,caption\n{"".join(rows)}')
  for shard in range(2):
    own = range(shard * count // 2, (shard + 1) * count // 2)
    with tarfile.open(folder / f'tars/{shard:05}.tar', 'w') as tar:
      for i in own:
        for name, data in (('png', images[i]), ('txt', texts[i].encode())):
          member = tarfile.TarInfo(f'{i:05}.{name}')
          member.size = len(data)
          tar.addfile(member, io.BytesIO(data))
    write(
      folder / f'records/{shard:05}.array_record',
      [example(0, image=images[i], caption=texts[i]) for i in own],
    )
  return {
    'parquet': f'parquet:{folder}/parquet/{{0..1}}.parquet',
    'hf': f'hf:{folder}/hf',
    'folder': f'folder:{folder}/images',
    'csv': f'csv:{folder}/table.csv',
    'wds': f'wds:{folder}/tars/{{00000..00001}}.tar',
    'arrayrecord': f'arrayrecord:{folder}/records/*.array_record',
  }
