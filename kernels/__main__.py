"""python -m minigan.kernels: compiles all kernels without a GPU, or runs a program under AddressSanitizer."""

import argparse
import os
import shutil
import sys

from . import check, sass
from .emulator import sanitizer_environment
from .source import KernelError, sources


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m minigan.kernels", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="compile every kernel in every variant with NVRTC")
    what.add_argument(
        "--occupancy",
        action="store_true",
        help="compile likewise; show what a block takes, and how many of its warps a multiprocessor holds",
    )
    what.add_argument(
        "--sass",
        action="store_true",
        help="compile the convolutions, and count the instructions of their main loops",
    )
    what.add_argument(
        "--sanitize",
        nargs=argparse.REMAINDER,
        metavar="PROGRAM",
        help="run it with the emulator's kernels under AddressSanitizer, e.g. --sanitize python my_test.py",
    )
    parser.add_argument(
        "--arch", help=f"default: {','.join(check.ARCHITECTURES)}; for --sass {','.join(sass.ARCHITECTURES)}"
    )
    parser.add_argument("--kernel", help="this kernel only")
    options = parser.parse_args()
    default = sass.ARCHITECTURES if options.sass else check.ARCHITECTURES
    archs = options.arch.split(",") if options.arch else list(default)
    try:
        if options.sass:
            return sass.main(sources(), archs, options.kernel)
        if options.check or options.occupancy:
            return check.main(sources(), archs, options.kernel, options.occupancy)
        if not options.sanitize:
            parser.error("--sanitize: expected a program and its arguments")
        program = shutil.which(options.sanitize[0])
        if program is None:
            parser.error(f"--sanitize: there is no program {options.sanitize[0]!r}")
        os.execve(program, options.sanitize, os.environ | sanitizer_environment())
    except KernelError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
