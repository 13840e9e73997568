"""A step's losses on their way to the host, which does not wait for them."""

from collections.abc import Mapping

import numpy as np

from minigan.backend import array_module, is_cuda, on_device
from minigan.tensor import Tensor


class Readback:
    """The numbers of a step; on a GPU a copy that is under way, and that no later step can change any more.

    The copy goes to pinned memory, so that nobody waits for it but `values`, and it only for this step, not for what
    was asked of the GPU after it.
    """

    def __init__(self, results: Mapping[str, Tensor | float], device: str) -> None:
        self.results = dict(results)
        found = {n: t for n, t in results.items() if isinstance(t, Tensor) and is_cuda(t.device)}
        self.tensors = list(found)
        if found:
            xp = array_module(device)
            with on_device(device):
                stacked = xp.stack([t.data.reshape(()) for t in found.values()])
                memory = xp.cuda.alloc_pinned_memory(stacked.nbytes)
                self.host = np.frombuffer(memory, stacked.dtype, len(self.tensors))
                xp.asnumpy(stacked, out=self.host, blocking=False)
                self.done = xp.cuda.Event(disable_timing=True)
                self.done.record()
            self.results.update(dict.fromkeys(self.tensors, 0.0))  # not the tensors, whose memory is needed

    def values(self) -> dict[str, float]:
        """What they are; on a GPU as soon as it has done that step."""
        if self.tensors:
            self.done.synchronize()
            self.results.update(zip(self.tensors, self.host.tolist(), strict=True))
        return {name: float(value) for name, value in self.results.items()}
