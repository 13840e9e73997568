"""The two ceilings of a machine, measured in the same run: how fast it copies, how fast it multiplies matrices.

A ceiling is the best that was seen, not the median.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from convolutions import PRECISIONS
from timing import Timer, Work, interleave

# Bytes of the array that is copied, rows of the square matrices.
SIZES = {"cpu": (256 << 20, 2048), "cuda": (1 << 30, 8192)}


@dataclass(frozen=True)
class Ceilings:
    bytes_per_second: float
    operations_per_second: dict[str, float]  # by precision

    def floor(self, operations: int, traffic: int, precision: str) -> float:
        """The seconds below which no kernel can get: its arithmetic or its bytes, whichever takes longer."""
        return max(operations / self.operations_per_second[precision], traffic / self.bytes_per_second)


def measure(timer: Timer, torch: Any, device: str, precisions: Sequence[str], seconds: float = 0.5) -> Ceilings:
    """Both ceilings by PyTorch: a copy (bytes read and written), and a product of random matrices in each precision."""
    kind = "cpu" if device == "cpu" else "cuda"
    size, rows = SIZES[kind]
    target = "cpu" if kind == "cpu" else "cuda"
    source = torch.rand(size // 4, device=target)
    copy = torch.empty_like(source)
    works = [Work("copy", lambda: copy.copy_(source), "torch")]
    for name in precisions:
        a, b = (torch.randn(rows, rows, device=target).to(getattr(torch, PRECISIONS[name].torch_dtype)) for _ in "ab")
        works.append(Work(name, _product(torch, a, b, PRECISIONS[name].allow_tf32), "torch"))
    times = interleave(timer, works, seconds)
    best = {name: (one.warm or one.cold).best for name, one in times.items()}
    return Ceilings(2 * size / best.pop("copy"), {name: 2 * rows**3 / time for name, time in best.items()})


def _product(torch: Any, a: Any, b: Any, allow_tf32: bool) -> Callable[[], Any]:
    out = torch.empty_like(a)

    def run() -> None:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = allow_tf32
        try:
            torch.mm(a, b, out=out)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    return run
