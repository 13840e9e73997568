"""Which threads of a block execute an instruction together."""

from functools import cached_property

import numpy as np

Array = np.ndarray
WARP, WARPGROUP = 32, 128


class Lanes:
    """Threads of a block that execute an instruction together."""

    def __init__(self, mask: Array) -> None:
        self.mask = mask
        self.numbers = np.flatnonzero(mask)
        self.all = len(self.numbers) == len(mask)

    @cached_property
    def warpgroups(self) -> Array:
        return np.unique(self.numbers // WARPGROUP)

    def where(self, condition: Array) -> "Lanes":
        return Lanes(self.mask & condition)
