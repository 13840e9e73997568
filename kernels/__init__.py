"""CUDA C++ kernels, and what reads, checks and runs them without a GPU. common.cuh says how one is written."""

from .source import EmulatorError, KernelError, Source, load, read_source, sources

__all__ = ["EmulatorError", "KernelError", "Source", "load", "read_source", "sources"]
