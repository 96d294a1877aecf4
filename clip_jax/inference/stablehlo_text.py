"""Prints a StableHLO program, read as bytes from stdin, as text.

A process of its own, and without jax: damaged bytes can end the process that
parses them (the reader is C++), and it writes to stderr what it finds.
"""

import sys

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import chlo, mhlo, sdy, stablehlo


def main() -> None:
  program = sys.stdin.buffer.read()
  context = ir.Context()
  for dialect in (chlo, sdy, stablehlo):
    dialect.register_dialect(context)
  mhlo.register_mhlo_dialect(context)
  module = stablehlo.deserialize_portable_artifact(context, program)
  module.operation.verify()
  sys.stdout.write(str(module))


if __name__ == '__main__':
  main()
