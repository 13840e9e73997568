"""Executes what NVRTC makes of the kernels, their PTX, without a GPU."""

from .interpreter import launch, reachable
from .text import PtxError

__all__ = ["PtxError", "launch", "reachable"]
