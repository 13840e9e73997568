"""The peer: PyTorch's convolution of the same memory, cuDNN behind it on a GPU and mostly oneDNN on a CPU.

It gets what it likes: channels_last tensors (minigan's own layout, so both read the same bytes), cuDNN's search for the
fastest algorithm (`cudnn.benchmark`), gradients one at a time by `convolution_backward`, and no bias.

Padding. PyTorch pads both sides alike; TensorFlow's SAME, which these networks use, pads one more after than before
where the kernel is odd and the stride 2. The peer then gets an input that has this one row and column of zeros already,
made outside of the timing, and pads the rest itself. So it does the same multiplications and gives the same outputs;
but its input, and its input gradient, have one more row and column (1.6 % more pixels at 128 x 128, 13 % at 16 x 16),
which are cut off outside of the timing. `Peer.extra` says of which problems this is true.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from convolutions import Precision

from minigan.backend import Array, array_module
from minigan.ops.geometry import Geometry


def axis_padding(size: int, kernel: int, outputs: int, stride: int, before: int) -> tuple[int, int, int]:
    """(padding on both sides, zeros to add before, zeros to add after), for one axis."""
    after = max(0, (outputs - 1) * stride + kernel - size - before)
    both = min(before, after)
    return both, before - both, after - both


class Peer:
    """One problem on PyTorch, at one precision.

    x, w, gy: NumPy arrays for a CPU, CuPy's for a GPU, float32, with values that the precision can hold. Nothing is
    copied but for a conversion to 16 bits, and for the input if it needs zeros.
    """

    def __init__(self, torch: Any, g: Geometry, precision: Precision, operands: Mapping[str, Array]) -> None:
        self.torch, self.g, self.precision = torch, g, precision
        vertical = axis_padding(g.h, g.r, g.p, g.stride_h, g.top)
        horizontal = axis_padding(g.w, g.s, g.q, g.stride_w, g.left)
        self.padding = [vertical[0], horizontal[0]]
        self.before = (vertical[1], horizontal[1])
        self.extra = (sum(vertical[1:]), sum(horizontal[1:]))
        self.stride = [g.stride_h, g.stride_w]
        x, self.w, self.gy = (self._tensor(operands[name]) for name in ("x", "w", "gy"))
        if any(self.extra):
            # (left, right, top, bottom), of N C H W
            x = torch.nn.functional.pad(x, (*horizontal[1:], *vertical[1:]))
            x = x.contiguous(memory_format=torch.channels_last)
        self.x = x
        outputs = [
            (n + 2 * both - taps) // step + 1
            for n, both, taps, step in zip(x.shape[2:], self.padding, (g.r, g.s), self.stride, strict=True)
        ]
        if outputs != [g.p, g.q]:
            raise ValueError(f"peer: PyTorch's padding {self.padding} gives {outputs} outputs, expected {[g.p, g.q]}")

    def _tensor(self, array: Array) -> Any:
        """(N, H, W, C) -> a channels_last tensor (N, C, H, W) on the same memory."""
        tensor = self.torch.from_numpy(array) if isinstance(array, np.ndarray) else self.torch.from_dlpack(array)
        return tensor.permute(0, 3, 1, 2).to(getattr(self.torch, self.precision.torch_dtype))

    def runner(self, name: str) -> Callable[[], Any]:
        """A pass, ready to be called."""
        aten = self.torch.ops.aten
        if name == "forward":
            return self._set(lambda: aten.convolution(self.x, self.w, None, *self._sizes()))
        mask = [name == "input_grad", name == "weight_grad", False]
        which = mask.index(True)
        return self._set(lambda: aten.convolution_backward(self.gy, self.x, self.w, None, *self._sizes(), mask)[which])

    def _sizes(self) -> tuple[Any, ...]:
        """stride, padding, dilation, transposed, output padding, groups."""
        return self.stride, self.padding, [1, 1], False, [0, 0], 1

    def _set(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """The call under `settings`. They say nothing about a CPU, where they would only be timed."""
        if not self.x.is_cuda:
            return call

        def run() -> Any:
            with settings(self.torch, self.precision):
                return call()

        return run

    def result(self, tensor: Any, name: str) -> Array:
        """A result as an array of minigan's layout, float32, without the added rows and columns."""
        tensor = tensor.permute(0, 2, 3, 1).float()
        if name == "input_grad":
            top, left = self.before
            tensor = tensor[:, top : top + self.g.h, left : left + self.g.w]
        tensor = tensor.contiguous()
        return tensor.numpy() if tensor.device.type == "cpu" else array_module("cuda").from_dlpack(tensor)


@contextmanager
def settings(torch: Any, precision: Precision) -> Iterator[None]:
    """PyTorch's own settings for one call, each of them explicit: what it may round, and that cuDNN searches."""
    backends = torch.backends
    matmul = backends.cuda.matmul
    names = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
    before = {name: getattr(matmul, name) for name in names}
    for name in names:
        setattr(matmul, name, False)
    try:
        with (
            torch.no_grad(),
            backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=precision.allow_tf32),
        ):
            yield
    finally:
        for name, value in before.items():
            setattr(matmul, name, value)
