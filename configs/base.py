"""Every field of a run, with its default, unit and meaning.

A recipe starts from this and states only what differs. Fields of
`model.image` and `model.text` that are None come from the preset, or, for the
vocabulary, from the tokenizer.

With `initialize_from`, what is left open here (None or '') comes from that
model: its shapes, its tokenizer, and how it treats images. So, for any recipe,
`--config.initialize_from=REF` is all that fine-tuning needs. Where a recipe's
shapes differ from the weights', the weights win; a shape from the command line
that contradicts them is an error.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
  """Returns the paper's recipe for a ViT, without data."""
  c = ConfigDict()
  c.seed = 0  # initial weights, order of the data, augmentation
  c.total_steps = 10_000  # optimizer updates
  c.log_every_steps = 50
  # Steps in a row whose loss or gradient is not finite, none of which is
  # applied, before the run stops; 0: it never does.
  c.max_skipped_steps = 10
  c.stall_seconds = 300.0  # without a step, before a warning; 0: never
  # A REF whose weights come first, instead of random ones. For another image
  # size, a ViT's positions are interpolated.
  c.initialize_from = ''
  # Patterns of parameters that begin as random numbers all the same, as in
  # ('text', 'text_projection'); the patterns are those of optimizer.groups.
  c.initialize_anew = ()
  # For another context length: 'append' keeps the positions of its texts and
  # adds copies of the last; 'interpolate' moves all, as open_clip does.
  c.initialize_text_positions = 'append'
  # Fine-tune with the config's tokenizer instead of the model's own; the token
  # embedding is re-initialized.
  c.initialize_new_vocabulary = False

  c.model = ConfigDict()
  c.model.preset = (
    ''  # a row of clip_jax/models/presets.py; '': all fields here
  )
  c.model.dtype = 'float32'  # of the towers' arithmetic, or 'bfloat16'
  # What a block keeps for its backward pass, which computes the rest again:
  # none (keeps all), dots, save_both, save_mlp, save_qkv, full (its input). Or
  # two of them, as 'full:0.75,none': full for the first 75 % of the blocks.
  c.model.remat = 'none'
  c.model.text_remat = ''  # of the text tower and the decoder; '': the same
  c.model.patch_dropout = 0.0  # fraction of patches that a ViT does not see
  # Low-rank adapters of the attention products (LoRA): of this rank; 0: none.
  # They alone are trained, unless optimizer.groups says what is.
  c.model.lora = ConfigDict()
  c.model.lora.rank = 0
  c.model.lora.alpha = 16.0  # their product is scaled by alpha / rank
  c.model.lora.towers = ('image', 'text')  # which have them
  c.model.embed_dim = placeholder(int)
  c.model.initial_logit_scale = placeholder(float)  # 1 / temperature
  c.model.initial_logit_bias = placeholder(float)  # None: the model has none
  c.model.image = ConfigDict()
  c.model.image.image_size = placeholder(int)  # pixels; see data.image_size
  c.model.image.patch_size = placeholder(int)  # pixels
  c.model.image.width = placeholder(int)
  c.model.image.depth = placeholder(int)
  c.model.image.heads = placeholder(int)
  c.model.image.mlp_ratio = placeholder(float)
  c.model.image.activation = placeholder(str)  # quick_gelu, gelu, gelu_tanh
  # class_token, average, attention; clip_jax/models/config.py says each
  c.model.image.pooling = placeholder(str)
  c.model.image.class_token = placeholder(bool)
  c.model.image.patch_bias = placeholder(bool)
  c.model.image.pre_norm = placeholder(bool)
  c.model.image.norm_after_pooling = placeholder(bool)
  c.model.image.norm_eps = placeholder(float)
  c.model.image.projection = placeholder(str)  # linear, affine, mlp, none
  # A ResNet instead: the blocks of four stages; with image_size, width, heads.
  c.model.image.layers = placeholder(tuple)
  c.model.text = ConfigDict()
  c.model.text.vocab_size = placeholder(int)
  c.model.text.context_length = placeholder(int)  # tokens, specials included
  c.model.text.width = placeholder(int)
  c.model.text.depth = placeholder(int)
  c.model.text.heads = placeholder(int)
  c.model.text.mlp_ratio = placeholder(float)
  c.model.text.activation = placeholder(str)
  c.model.text.causal = placeholder(bool)
  c.model.text.pooling = placeholder(str)  # end, highest, last
  c.model.text.norm_eps = placeholder(float)
  c.model.text.projection = placeholder(str)  # linear, affine, mlp, none
  # A caption decoder beside the towers, for the objective that needs one; with
  # all None there is none. It has the text tower's vocabulary and context.
  c.model.decoder = ConfigDict()
  # tokens: a language model of its own; text_tower: goes on from that (CoCa);
  # image_prefix: a language model that reads the image's tokens first, through
  # a projector, and then its own (LLaVA); pooled_image: a linear layer, for
  # bag_of_words, without the fields below.
  c.model.decoder.reads = placeholder(str)
  c.model.decoder.width = placeholder(int)
  c.model.decoder.depth = placeholder(int)
  c.model.decoder.heads = placeholder(int)
  c.model.decoder.mlp_ratio = placeholder(float)
  c.model.decoder.activation = placeholder(str)
  c.model.decoder.norm_eps = placeholder(float)
  # The block of a ViT whose patch tokens are read, as -2, LLaVA's; None: all
  # tokens after the last LayerNorm.
  c.model.decoder.image_layer = placeholder(int)

  # clip, sentencepiece:PATH, siglip:PATH, hf:PATH, or initialize_from: that
  # model's own. '': the last one where there is such a model, otherwise clip.
  # A relative PATH is looked up where the command is run.
  c.tokenizer = ''
  # With a vocab_size above 0, a sentencepiece:PATH that does not exist is
  # trained on the captions of data.train (clip_jax/tokenizers).
  c.tokenizer_training = ConfigDict()
  c.tokenizer_training.vocab_size = 0  # pieces
  c.tokenizer_training.model_type = 'unigram'  # or 'bpe'
  c.tokenizer_training.split_by_script = True

  c.data = ConfigDict()
  # A SPEC (tfds:NAME#SPLIT, folder:PATH#SPLIT, csv:PATH, parquet:PATTERN,
  # wds:PATTERN, arrayrecord:PATTERN, hf:DIR), or a mixture of SPECs joined by
  # '::'; of all but the first three, patterns may be URLs such as gs://….
  c.data.train = ''
  c.data.weights = ()  # of the mixture; (): each by its number of records
  # Columns, of which one is drawn for each example; of a folder 'caption' (.txt
  # files or classes), 'filename', 'path' (the words of names).
  c.data.captions = ('caption',)
  # How often a caption comes from each of these columns, relative to the
  # others, as in (0.7, 0.3) for synthetic beside alt-text; of a record that
  # lacks one, among those that it has. (): each text is as likely.
  c.data.caption_weights = ()
  # Prompts around a caption, which of labelled data is the name of a class, as
  # 'a photo of a {}.'; one is drawn each time (FLYP). (): the caption as it is.
  c.data.templates = ()
  # Captions that are left out; the next record comes for one that has none
  # left. Of a maximum, 0 is none.
  c.data.filter = ConfigDict()
  c.data.filter.min_characters = 0
  c.data.filter.max_characters = 0
  c.data.filter.min_words = 0  # separated by white space
  c.data.filter.max_words = 0
  c.data.filter.drop = ''  # a regular expression that matches somewhere in it
  c.data.batch_size = 1024  # pairs, all devices together
  c.data.image_size = placeholder(int)  # pixels a side; None: the model's
  # How images become pixels (clip_jax/data/preprocessing.py). None:
  # as initialize_from's model has it, or else what stands behind the field.
  c.data.resize_mode = placeholder(str)  # shortest; or squash, longest, native
  c.data.interpolation = placeholder(str)  # bicubic; or bilinear, nearest
  c.data.mean = placeholder(tuple)  # CLIP's, of each channel in [0, 1]
  c.data.std = placeholder(tuple)  # likewise
  c.data.background = placeholder(str)  # white, under transparent images
  c.data.exif = placeholder(bool)  # True: turn photographs as EXIF says
  c.data.convention = placeholder(str)  # open_clip; or transformers
  # (): the image size; or pixels before the centre is cropped, as in (256,).
  c.data.resize_to = placeholder(tuple)
  # NaFlex: images keep their aspect, and have at most so many patches, one of
  # these numbers, which each step draws, as of (128, 256, 576). The positions,
  # of squares of image_size, are resized to each image's grid. (): squares.
  # None: as initialize_from's model has it.
  c.data.sequence_lengths = placeholder(tuple)
  c.data.workers = 0  # reading processes; 0: threads of this one
  c.data.cache = False  # keep decoded images in memory
  # How training reads JPEGs. fast: no larger than the crops need, by SIMD code,
  # the same crops with slightly other pixels; exact: Pillow's pixels. None: as
  # the run has it (exact, where it began before there was a choice), or fast.
  c.data.decode = placeholder(str)
  c.data.max_corrupt_records = 100  # distinct ones, then the run stops
  # Larger images are corrupt; 0: over 89, or 224 of a JPEG.
  c.data.max_megapixels = 0.0

  # So many augmented views of each record, the same ones in every epoch: view
  # k is a function of (view_seed, the record's id, k). 0: always new ones.
  c.data.views = 0
  c.data.view_seed = 0
  # Folders that clip-jax embed --config=THIS_CONFIG wrote, of one teacher each:
  # its features of these views, for objective.added.distillation.
  c.data.teachers = ()

  c.data.augment = ConfigDict()  # clip_jax/data/augment.py says each in full
  # The paper's only augmentation: a random square crop, whose area is this
  # fraction (least, most) of the square on the shorter side.
  c.data.augment.crop_scale = (1.0, 1.0)
  # The rest is off; it is for small data sets.
  c.data.augment.padding = 0.0  # border before the crop, of the shorter side
  c.data.augment.fill = 'white'  # the colour of what comes in at the border
  c.data.augment.plain = 0.0  # probability of the crop and nothing else
  c.data.augment.rotate = 0.0  # degrees, either way
  c.data.augment.zoom = 0.0  # by 1 / (1 + x) to 1 + x
  c.data.augment.stretch = 0.0  # width against height, likewise
  c.data.augment.shear = 0.0  # pixels across for each pixel down
  c.data.augment.shift = 0.0  # of the width and of the height
  c.data.augment.bend = 0.0  # nine points moved, of the width
  c.data.augment.flip = 0.0  # probability of a mirror image
  c.data.augment.brightness = 0.0  # all channels times 1 - x to 1 + x
  c.data.augment.channel_gain = 0.0  # each channel likewise
  c.data.augment.contrast = 0.0  # distance from mid-grey likewise
  c.data.augment.saturation = 0.0  # distance from grey likewise
  c.data.augment.grayscale = 0.0  # probability of no colours
  c.data.augment.blur = 0.0  # standard deviation, output pixels
  c.data.augment.noise = 0.0  # standard deviation, grey levels of 255
  # Another artist's hand: these leave a white ground white.
  c.data.augment.ink_mix = 0.0  # of each colour's ink into each other's
  c.data.augment.ink_gain = 0.0  # of all ink, standard deviation of its log
  c.data.augment.fade = 0.0  # probability of part of the way to grey
  c.data.augment.outline = 0.0  # ink drawn along edges
  c.data.augment.sharpen = 0.0  # away from, or towards, a 3 x 3 mean
  c.data.augment.shade = 0.0  # ink more on one side and less on the other
  c.data.augment.gamma = 0.0  # colours to a power of 1 / (1 + x) to 1 + x
  c.data.augment.erase = 0.0  # probability of a rectangle painted over

  c.objective = ConfigDict()
  # softmax; sigmoid, which needs a logit bias; captioning or bag_of_words,
  # which predict captions instead of comparing, by model.decoder (figure 2)
  c.objective.name = 'softmax'
  c.objective.weight = 1.0  # 0, where terms are added: it is not computed
  # Weights of terms beside the contrastive loss; 0: not computed.
  c.objective.added = ConfigDict()
  c.objective.added.captioning = 0.0  # predict the caption, by model.decoder
  # The divergence from the softmaxes of data.teachers (MobileCLIP).
  c.objective.added.distillation = 0.0
  # Small crops are to say what a momentum teacher, an average of the image
  # tower, says of a large one (SILC); and masked patches likewise (TIPS).
  c.objective.added.self_distillation = 0.0
  c.objective.added.masked_prediction = 0.0
  # Which logits are in memory at a time. dense: all, one formula over whole
  # arrays; all_gather: on each device its own rows; chunked: a tile of these;
  # ring: a tile, and no device ever has all features.
  c.objective.form = 'all_gather'
  c.objective.chunk = 1024  # rows and columns of a tile, at most
  # Pairs that the towers see at once, all devices together; 0: the batch.
  # Another number costs one more forward pass, and changes no result but that
  # of a ResNet, whose batch norm sees these pairs only.
  c.objective.micro_batch = 0
  c.objective.max_logit_scale = 100.0  # the temperature's limit; 0: none
  # 1 / temperature of each of the teachers; (): that which each has learned.
  c.objective.teacher_scales = ()
  # Of self_distillation and masked_prediction.
  c.objective.self_distillation = ConfigDict()
  c.objective.self_distillation.begin = 0.8  # fraction of total_steps before
  c.objective.self_distillation.local_views = 8  # of each image
  c.objective.self_distillation.local_size = 96  # pixels a side of these
  c.objective.self_distillation.masked = 0.5  # fraction of the patches
  c.objective.self_distillation.teacher_decay = 0.996  # of the average
  c.objective.self_distillation.centre_decay = 0.9  # of the mean of its logits
  c.objective.self_distillation.student_temperature = 0.1
  c.objective.self_distillation.teacher_temperature = 0.04
  c.objective.self_distillation.hidden = 2_048  # width of a head
  c.objective.self_distillation.features = 256  # that it compares
  c.objective.self_distillation.prototypes = 65_536  # with so many

  c.optimizer = ConfigDict()
  # adamw; lion (arXiv 2302.06675: a rate 3 to 10 times lower, a decay as many
  # times higher); muon, for the matrices of blocks, and adamw for the rest.
  c.optimizer.name = 'adamw'
  c.optimizer.learning_rate = 5e-4  # the peak
  c.optimizer.schedule = 'cosine'  # after the warm-up; linear, constant
  c.optimizer.warmup_steps = 2_000
  c.optimizer.weight_decay = 0.2  # decoupled; weights only
  c.optimizer.b1 = 0.9
  c.optimizer.b2 = 0.98
  c.optimizer.eps = 1e-6  # Adam's
  c.optimizer.momentum = 0.95  # Muon's, of its matrices
  c.optimizer.clip_norm = 0.0  # global norm of the gradient; 0: not clipped
  c.optimizer.mu_dtype = 'float32'  # of the first moment, or 'bfloat16'
  c.optimizer.nu_dtype = 'float32'  # of Adam's second moment, likewise
  # Rows (pattern of parameter paths, factor of the learning rate) or (pattern,
  # factor, weight decay): the first that matches decides, and each parameter
  # needs one. A factor of 0 freezes. clip_jax/training/parameter_groups.py says
  # what patterns are, as in (('image', 0.0), ('*', 1.0)). (): all alike.
  c.optimizer.groups = ()
  # Factor of the learning rate from each block to the one below; 1: all alike.
  c.optimizer.layer_decay = 1.0
  # The decay of a moving average of the weights, which is evaluated, exported
  # and loaded; 0.999 averages about the last thousand steps. 0: no average.
  c.optimizer.ema_decay = 0.0

  c.mesh = ConfigDict()  # sizes of the device grid; -1 once: the rest
  c.mesh.data = -1  # copies of the model
  c.mesh.fsdp = 1  # devices that share one copy's parameters
  c.mesh.tensor = 1  # devices that share each layer's heads and columns
  c.mesh.slices = 1  # groups of devices, each with a grid as above
  c.mesh.cpu_devices = 1  # without an accelerator: devices the CPU stands for

  c.checkpoint = ConfigDict()
  c.checkpoint.every_steps = 1_000
  c.checkpoint.keep = 3  # newest ones kept
  # Keep the best by it too: eval/zero_shot/top1, or (the lowest) eval/loss/loss
  # or eval/zero_shot/ece.
  c.checkpoint.best_metric = ''

  c.evaluation = ConfigDict()
  c.evaluation.every_steps = 1_000  # and after the last; 0: only after it
  c.evaluation.tasks = ()  # zero_shot, retrieval, captioning (of a decoder)
  c.evaluation.data = ''  # a SPEC; of its captions there is also the loss
  # If True, also evaluate an equal number of training pairs, to reveal
  # overfitting.
  c.evaluation.train_sample = True
  c.evaluation.captions = ('caption',)  # its columns, as above
  c.evaluation.templates = ('{}',)
  # Zero-shot among all names of the data, or (present) those of its records.
  c.evaluation.classes = 'all'
  c.evaluation.batch_size = 256
  return c
