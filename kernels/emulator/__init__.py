"""Runs the CUDA kernels on the CPU: g++ builds them against cuda_emulator.h, one fiber a CUDA thread."""

from .builder import sanitizer_environment
from .executor import Options, launch, options

__all__ = ["Options", "launch", "options", "sanitizer_environment"]
