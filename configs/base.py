"""Every field of a run, with its default, unit and meaning.

A recipe starts from this and states only what differs. Fields of
`model.image` and `model.text` that are None come from the preset, or, for the
vocabulary, from the tokenizer.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
  """The paper's recipe for a ViT, without data."""
  c = ConfigDict()
  c.seed = 0  # initial weights, order of the data, augmentation
  c.total_steps = 10_000  # optimizer updates
  c.log_every_steps = 50

  c.model = ConfigDict()
  c.model.preset = (
    ''  # a row of clip_jax/models/presets.py; '': all fields here
  )
  c.model.dtype = 'float32'  # of the towers' arithmetic, or 'bfloat16'
  c.model.remat = 'none'  # what is computed again: none, dots, full
  c.model.embed_dim = placeholder(int)
  c.model.initial_logit_scale = placeholder(float)  # 1 / temperature
  c.model.image = ConfigDict()
  c.model.image.image_size = placeholder(int)  # pixels; see data.image_size
  c.model.image.patch_size = placeholder(int)  # pixels
  c.model.image.width = placeholder(int)
  c.model.image.depth = placeholder(int)
  c.model.image.heads = placeholder(int)
  c.model.image.mlp_ratio = placeholder(float)
  c.model.image.activation = placeholder(str)  # quick_gelu, gelu
  c.model.image.pooling = placeholder(str)  # class_token, average
  c.model.image.pre_norm = placeholder(bool)
  c.model.text = ConfigDict()
  c.model.text.vocab_size = placeholder(int)
  c.model.text.context_length = placeholder(int)  # tokens, specials included
  c.model.text.width = placeholder(int)
  c.model.text.depth = placeholder(int)
  c.model.text.heads = placeholder(int)
  c.model.text.mlp_ratio = placeholder(float)
  c.model.text.activation = placeholder(str)
  c.model.text.causal = placeholder(bool)

  c.tokenizer = 'clip'  # or sentencepiece:PATH, hf:PATH
  # Above 0: a sentencepiece:PATH that does not exist is trained, with this
  # many pieces, on the captions of data.train.
  c.tokenizer_vocab_size = 0

  c.data = ConfigDict()
  c.data.train = ''  # a SPEC, or several joined by '::' (a mixture)
  c.data.weights = ()  # of the mixture; (): each by its number of records
  c.data.captions = ('caption',)  # columns; one is drawn for each example
  c.data.batch_size = 1024  # pairs, all devices together
  c.data.image_size = placeholder(int)  # pixels a side; None: the model's
  c.data.resize_mode = 'shortest'  # evaluation: shortest, squash, longest
  c.data.workers = 0  # reading processes; 0: threads of this one
  c.data.cache = False  # keep decoded pictures in memory
  c.data.max_corrupt_records = 100  # distinct ones, then the run stops

  c.data.augment = ConfigDict()  # clip_jax/data/augment.py says each in full
  # The paper's only augmentation: a random square crop of the resized
  # picture; its side as a fraction of the picture's shorter side.
  c.data.augment.crop_scale = (0.9, 1.0)

  c.objective = ConfigDict()
  c.objective.name = 'softmax'
  c.objective.form = 'all_gather'  # or 'dense': one formula over whole arrays

  c.optimizer = ConfigDict()
  c.optimizer.learning_rate = 5e-4  # the peak
  c.optimizer.schedule = 'cosine'  # after the warm-up; linear, constant
  c.optimizer.warmup_steps = 2_000
  c.optimizer.weight_decay = 0.2  # decoupled; weights only
  c.optimizer.b1 = 0.9
  c.optimizer.b2 = 0.98
  c.optimizer.eps = 1e-6
  c.optimizer.clip_norm = 0.0  # global norm of the gradient; 0: not clipped
  c.optimizer.mu_dtype = 'float32'  # of Adam's first moment, or 'bfloat16'

  c.mesh = ConfigDict()  # sizes of the device grid; -1 once: the rest
  c.mesh.data = -1  # copies of the model
  c.mesh.fsdp = 1  # devices that share one copy's parameters
  c.mesh.tensor = 1  # devices that share each layer's heads and columns
  c.mesh.cpu_devices = 1  # without an accelerator: devices the CPU stands for

  c.checkpoint = ConfigDict()
  c.checkpoint.every_steps = 1_000
  c.checkpoint.keep = 3  # newest ones kept
  c.checkpoint.best_metric = ''  # keep the best by it too: eval/…

  c.evaluation = ConfigDict()
  c.evaluation.every_steps = 1_000  # and after the last; 0: only after it
  c.evaluation.tasks = ()  # zero_shot, retrieval
  c.evaluation.data = ''  # a SPEC
  c.evaluation.templates = ('{}',)
  c.evaluation.batch_size = 256
  return c
