"""The data sets of the paper, and a few that every machine has.

They are those of table 9, ImageNet's shifts, and those for retrieval and bias.
One row each. Where TFDS has a data set, the SPEC is TFDS's; where it has not,
it is a folder below the user's data folder `{root}`: a sub-folder a split, in
it a sub-folder a class, named as our class list names it (case, spaces and
punctuation are free, so `F-16A_B` will do for `F-16A/B`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypedDict

from clip_jax.evaluation.dataset import Metric

Group = Literal['paper', 'shift', 'retrieval', 'bias', 'local', 'own']
# The kinds of right answers of an image: the record's label; each of the
# labels of an object in it (VOC); something computed from the objects of a
# TFDS record; columns of a table (FairFace); or what its caption says (`note`
# says how).
Target = Literal[
  'label', 'object_labels', 'nearest_vehicle', 'object_count', 'skin_tone',
  'gender', 'face_race', 'face_gender', 'face_age', 'face_race_gender',
]  # fmt: skip


@dataclass(frozen=True)
class DatasetFacts:
  """The facts about a data set that evaluations and `eval --list` need."""

  name: str
  title: str  # as in the paper
  group: Group
  metric: Metric | None  # None: the task has its own (recall, rates)
  train: str | None  # SPEC, without the images of `validation`
  validation: str | None  # SPEC; None: hold some of `train` out
  test: str | None  # SPEC
  sizes: tuple[int | None, int | None]  # train with validation, test
  target: Target = 'label'
  uncertain: tuple[str, ...] = ()  # of 'classes', 'train_size', 'test_size'
  note: str = ''  # where a split, a label or a layout has to be made
  classes: int | None = None  # how many, where their names are the source's
  shift_of: str | None = None  # the data set that its distribution is shifted
  greyscale: bool = False  # the images are read without their colours
  tasks: tuple[str, ...] = ()  # of a user's own data; else the suite knows


class _Specs(TypedDict):
  train: str | None
  validation: str | None
  test: str | None


def _folder(
  name: str, train: str = 'train', test: str = 'test', validation: str = ''
) -> _Specs:
  """Returns the SPECs of a data set that a user lays out in folders."""
  folder = f'folder:{{root}}/{name}'
  return {
    'train': f'{folder}#{train}',
    'validation': f'{folder}#{validation}' if validation else None,
    'test': f'{folder}#{test}',
  }


def _tfds(
  name: str, train: str = 'train', test: str = 'test', validation: str = ''
) -> _Specs:
  """Returns the SPECs of a data set that TFDS prepares."""
  return {
    'train': f'tfds:{name}#{train}',
    'validation': f'tfds:{name}#{validation}' if validation else None,
    'test': f'tfds:{name}#{test}',
  }


def _paper(
  name: str,
  title: str,
  metric: Metric,
  sizes: tuple[int, int],
  specs: _Specs,
  target: Target = 'label',
  uncertain: tuple[str, ...] = (),
  note: str = '',
) -> DatasetFacts:
  return DatasetFacts(
    name, title, 'paper', metric, **specs, sizes=sizes, target=target,
    uncertain=uncertain, note=note,
  )  # fmt: skip


def _shift(
  name: str,
  title: str,
  test: str,
  size: int,
  uncertain: tuple[str, ...] = (),
  note: str = '',
) -> DatasetFacts:
  return DatasetFacts(
    name, title, 'shift', 'accuracy', None, None, test, (None, size),
    uncertain=uncertain, note=note, shift_of='imagenet',
  )  # fmt: skip


def _local(
  name: str,
  title: str,
  tfds_name: str,
  sizes: tuple[int, int],
  target: Target = 'label',
  note: str = '',
  classes: int | None = None,
  shift_of: str | None = None,
  greyscale: bool = False,
) -> DatasetFacts:
  return DatasetFacts(
    name, title, 'local', 'accuracy', **_tfds(tfds_name), sizes=sizes,
    target=target, note=note, classes=classes, shift_of=shift_of,
    greyscale=greyscale,
  )  # fmt: skip


def _fairface(
  name: str, title: str, target: Target, columns: str
) -> DatasetFacts:
  tables = 'csv:{root}/fairface/fairface_label_'
  return DatasetFacts(
    name, title, 'bias', None, f'{tables}train.csv', None, f'{tables}val.csv',
    (86_744, 10_954), target=target,
    note=f'the class is the {columns} of the published tables, which lie '
         'beside the folders train and val of the images',
  )  # fmt: skip


# The rows are in the order of the paper's tables 9 to 11.
_ROWS = (
  _paper('food101', 'Food-101', 'accuracy', (75_750, 25_250),
         _tfds('food101', test='validation')),
  _paper('cifar10', 'CIFAR-10', 'accuracy', (50_000, 10_000),
         _tfds('cifar10')),
  _paper('cifar100', 'CIFAR-100', 'accuracy', (50_000, 10_000),
         _tfds('cifar100')),
  _paper('birdsnap', 'Birdsnap', 'accuracy', (42_283, 2_149),
         _folder('birdsnap'),
         note='only the images that are still on the web'),
  _paper('sun397', 'SUN397', 'accuracy', (19_850, 19_850),
         _tfds('sun397/standard-part1-120k'),
         note='the first of ten published splits'),
  _paper('stanford_cars', 'Stanford Cars', 'accuracy', (8_144, 8_041),
         _tfds('cars196')),
  _paper('fgvc_aircraft', 'FGVC Aircraft', 'mean_per_class', (6_667, 3_333),
         _folder('fgvc_aircraft', validation='val'),
         note='folders are variants; train 3,334 images, val 3,333'),
  _paper('voc2007', 'Pascal VOC 2007 Classification', 'map_11_point',
         (5_011, 4_952), _tfds('voc/2007', validation='validation'),
         target='object_labels',
         note='an image has several classes: the feature labels of TFDS, '
              'where labels_no_difficult leaves the difficult objects out'),
  _paper('dtd', 'Describable Textures', 'accuracy', (3_760, 1_880),
         _tfds('dtd', validation='validation'),
         note='the first of ten published splits'),
  _paper('oxford_pets', 'Oxford-IIIT Pets', 'mean_per_class', (3_680, 3_669),
         _tfds('oxford_iiit_pet')),
  _paper('caltech101', 'Caltech-101', 'mean_per_class', (3_060, 6_085),
         _tfds('caltech101'),
         note='30 images a class, drawn by TFDS with its own seed: not the '
              'split of the paper, which is unpublished'),
  _paper('flowers102', 'Oxford Flowers 102', 'mean_per_class',
         (2_040, 6_149), _tfds('oxford_flowers102', validation='validation')),
  _paper('mnist', 'MNIST', 'accuracy', (60_000, 10_000), _tfds('mnist')),
  _paper('fer2013', 'Facial Emotion Recognition 2013', 'accuracy',
         (32_140, 3_574), _folder('fer2013', validation='validation'),
         uncertain=('classes', 'train_size', 'test_size'),
         note="train is Kaggle's Training (28,709), validation PublicTest "
              '(3,589), test PrivateTest (3,589); the authors say that the '
              "paper's sizes are too small by mistake (openai/CLIP issue 45)"),
  _paper('stl10', 'STL-10', 'accuracy', (1_000, 8_000), _tfds('stl10'),
         note='the paper averages the 10 published folds of 1,000 of the '
              '5,000 training images (openai/CLIP issue 45); TFDS has no '
              'folds'),
  _paper('eurosat', 'EuroSAT', 'accuracy', (10_000, 5_000),
         _tfds('eurosat', 'train[:10000]', 'train[10000:15000]'),
         note='the 27,000 images have no published split: the first 10,000 '
              "and the next 5,000 in TFDS's shuffled order, not the paper's"),
  _paper('resisc45', 'RESISC45', 'accuracy', (3_150, 25_200),
         _tfds('resisc45', 'train[:10%]', 'train[20%:]'),
         note='the 31,500 images have no published split: 10% and another '
              "80% in TFDS's shuffled order, not the paper's"),
  _paper('gtsrb', 'GTSRB', 'accuracy', (26_640, 12_630), _folder('gtsrb'),
         note='train is that of the IJCNN 2011 competition, test the official '
              'one, as in the paper by oversight (openai/CLIP issue 156)'),
  _paper('kitti_distance', 'KITTI', 'accuracy', (6_770, 711),
         _tfds('kitti', validation='validation'), target='nearest_vehicle',
         note='class 0 where the nearest object of type Car, Van or Truck '
              '(0, 1, 2) is at most 8 m ahead (location[2]), 1 at most '
              '20 m, 2 further, 3 where there is none (as in VTAB)'),
  _paper('country211', 'Country211', 'accuracy', (43_200, 21_100),
         _folder('country211', validation='valid'), uncertain=('train_size',),
         note='the archive of openai/CLIP has 31,650 images in train and '
              '10,550 in valid, 42,200 together'),
  _paper('patch_camelyon', 'PatchCamelyon', 'accuracy', (294_912, 32_768),
         _tfds('patch_camelyon', validation='validation')),
  _paper('ucf101', 'UCF101', 'accuracy', (9_537, 1_794), _folder('ucf101'),
         uncertain=('test_size',),
         note='the middle frame of each video of the first split; its test '
              "list has 3,783 videos, and the authors say that the paper's "
              'size is a mistake (openai/CLIP issue 45)'),
  _paper('kinetics700', 'Kinetics700', 'mean_top1_top5', (494_801, 31_669),
         _folder('kinetics700'),
         note='the middle frame of each video that is still on the web'),
  _paper('clevr_counts', 'CLEVR Counts', 'accuracy', (2_000, 500),
         _tfds('clevr', 'train[:2000]', 'validation[:500]'),
         target='object_count',
         note='the class is the number of objects, 3 to 10 (VTAB); the '
              "paper's 2,500 images are unpublished, so the first of each "
              'split of TFDS are taken'),
  _paper('hateful_memes', 'Hateful Memes', 'roc_auc', (8_500, 500),
         _folder('hateful_memes', test='dev'),
         note='folders 0 and 1 by the label; tested on dev'),
  _paper('rendered_sst2', 'Rendered SST2', 'accuracy', (7_792, 1_821),
         _folder('rendered_sst2', validation='valid'),
         note='the archive of openai/CLIP as it is'),
  _paper('imagenet', 'ImageNet', 'accuracy', (1_281_167, 50_000),
         _tfds('imagenet2012', test='validation')),
  _shift('imagenet_v2', 'ImageNetV2',
         'tfds:imagenet_v2/matched-frequency#test', 10_000),
  _shift('imagenet_r', 'ImageNet Rendition', 'tfds:imagenet_r#test', 30_000,
         note='of 200 of the classes'),
  _shift('imagenet_a', 'ImageNet-A', 'tfds:imagenet_a#test', 7_500,
         uncertain=('test_size',), note='of 200 of the classes'),
  _shift('imagenet_sketch', 'ImageNet Sketch', 'tfds:imagenet_sketch#test',
         50_889),
  _shift('objectnet', 'ObjectNet', 'folder:{root}/objectnet', 18_574,
         uncertain=('test_size',),
         note='the 313 folders of objectnet-1.0/images, of which 113 are '
              'classes of ImageNet; cut the red border of 2 pixels off'),
  _shift('imagenet_vid_robust', 'ImageNet-Vid',
         'csv:{root}/imagenet_vid_robust/anchors.csv', 1_109,
         note='the anchor frames alone (PM0 in the paper), by the first '
              'of their labels; columns image and label'),
  _shift('ytbb_robust', 'Youtube-BB', 'csv:{root}/ytbb_robust/anchors.csv',
         2_530,
         note='the anchor frames alone (PM0 in the paper), by the first '
              'of their labels; columns image and label; 19 of its 23 classes '
              'hold some of ImageNet'),
  DatasetFacts('flickr30k', 'Flickr30k', 'retrieval', None, None, None,
               'folder:{root}/flickr30k#test', (None, 1_000),
               note="Karpathy's test split; beside each image a .txt of "
                    'its five captions'),
  DatasetFacts('coco_captions', 'MSCOCO', 'retrieval', None, None, None,
               'folder:{root}/coco_captions#test', (None, 5_000),
               note="Karpathy's test split; beside each image a .txt of "
                    'its captions, five of them used'),
  _fairface('fairface_race', 'FairFace: race', 'face_race', 'column race'),
  _fairface('fairface_gender', 'FairFace: gender', 'face_gender',
            'column gender'),
  _fairface('fairface_age', 'FairFace: age', 'face_age', 'column age'),
  _fairface('fairface_race_gender', 'FairFace: race and gender',
            'face_race_gender', 'columns race and gender together'),
  _local('emoji', 'Emoji', 'emoji', (3_501, 443), classes=3_944,
         note='an image a class; the skin-tone combinations of test are not '
              'in train'),
  _local('emoji_skin_tones', 'Skin tones of emoji', 'emoji', (1_295, 355),
         target='skin_tone',
         note='the tone that a caption names, where it names one'),
  _local('emoji_skin_tones_grey', 'Skin tones of grey emoji', 'emoji',
         (1_295, 355), target='skin_tone', shift_of='emoji_skin_tones',
         greyscale=True, note='emoji_skin_tones without colours'),
  _local('emoji_people', 'People in emoji', 'emoji', (1_080, 239),
         target='gender',
         note='man, woman or person, where a caption has one of the words '
              'once and no other that tells people apart'),
  _local('digits', "scikit-learn's digits", 'digits', (1_438, 359)),
)  # fmt: skip

DATASETS: Mapping[str, DatasetFacts] = MappingProxyType(
  {row.name: row for row in _ROWS}
)
