"""CUDA C++ kernels, and what reads, checks and runs them without a GPU. common.cuh says how one is written."""

from .source import KernelError, Source, load, read_source, sources

__all__ = ["KernelError", "Source", "load", "read_source", "sources"]
