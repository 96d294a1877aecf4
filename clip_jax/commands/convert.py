"""Writes a model in the layout of another library.

usage:
  clip-jax convert --model=REF --to=hf|open_clip --out=DIR

examples:
  clip-jax convert --model=runs/emoji --to=hf --out=emoji_hf
  clip-jax convert --model=ViT-B-32.pt --to=open_clip --out=vit_b_32
  clip-jax convert --model=siglip.npz --tokenizer=hf:siglip --to=hf --out=DIR

The directory holds config, weights (safetensors), tokenizer and preprocessing,
and loads there as it is:
  transformers.AutoModel.from_pretrained('emoji_hf')
  open_clip.create_model_and_transforms('local-dir:vit_b_32')
Anything the other library has no setting for is listed. The directory appears
whole.
"""

from absl import flags

from clip_jax.commands import common_flags, model_flags, printing
from clip_jax.errors import print_notes


def define_flags(values: flags.FlagValues) -> None:
  """Adds this verb's flags."""
  model_flags.define_model(values)
  flags.DEFINE_string(
    'to', None, 'hf (transformers) or open_clip', flag_values=values
  )
  common_flags.define_path(values, 'out', 'the directory to make')
  common_flags.define_json(values)


def run(values: flags.FlagValues, words: list[str]) -> None:
  """Converts, and says what was written."""
  common_flags.no_words('convert', words)
  reference = model_flags.reference_of(values)
  target = common_flags.require(values.to, 'to', 'hf or open_clip')
  out = common_flags.require(values.out, 'out', 'name a directory to make')

  from clip_jax.interop.converting import check_call, convert

  check_call(target, out)
  loaded = model_flags.read_model(values)
  converted = convert(loaded.description, loaded.variables, target, out)
  if values.json:
    printing.print_json(
      {
        'model': reference,
        'to': target,
        'out': out,
        'files': converted.files,
        'differences': converted.differences,
      }
    )
    return
  print_notes(converted.differences)
  for name, size in converted.files.items():
    print(f'{size:13,}  {out}/{name}')
