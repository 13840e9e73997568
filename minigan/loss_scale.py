"""The loss scale of training in fp16 (Micikevicius et al., "Mixed precision training", 2018)."""

from collections.abc import Iterable

import numpy as np

from minigan.backend import array_module, on_device, to_numpy
from minigan.tensor import Tensor


class LossScale:
    """What a loss is multiplied by before its gradients are computed, and they are divided by after.

    fp16 has nothing between 0 and 6e-8, where many gradients are; those of a loss that is `value` times as large are
    found elsewhere. Where that was too much, and one became infinite (or NaN), the step is skipped, and `value` halved;
    after GROWTH_STEPS steps in a row without that it is doubled. It is a power of two, so that nothing is rounded.
    """

    FIRST = 2.0**16
    LARGEST = 2.0**24
    GROWTH_STEPS = 2000

    def __init__(self, value: float = FIRST, good_steps: int = 0) -> None:
        self.value, self.good_steps = float(value), int(good_steps)

    def take_out(self, parameters: Iterable[Tensor]) -> bool:
        """Divides the parameters' gradients by it, or forgets them all if one is not finite; goes on with the schedule.

        Returns whether they were finite. Raises FloatingPointError where they are not although nothing was scaled.
        """
        used = [p for p in parameters if p.grad is not None]
        finite = all_finite([p.grad for p in used if p.grad is not None])
        if not finite and self.value <= 1:
            raise FloatingPointError(
                "gradients in fp16 are not finite even without a loss scale: expected numbers up to 65504 in each "
                "convolution; use precision bf16, which has float32's range, or a lower learning rate"
            )
        for p in used:
            p.grad = Tensor(p.grad.data * (1 / self.value), device=p.device) if finite and p.grad is not None else None
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.value /= 2
        elif self.good_steps == self.GROWTH_STEPS:
            self.value, self.good_steps = min(2 * self.value, self.LARGEST), 0
        return finite


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all values are finite. A GPU is waited for once."""
    by_device: dict[str, list[Tensor]] = {}
    for t in tensors:
        by_device.setdefault(t.device, []).append(t)
    for device, found in by_device.items():
        with on_device(device):
            xp = array_module(device)
            if not np.all(to_numpy(xp.stack([xp.isfinite(t.data).all() for t in found]))):
                return False
    return True
