"""Mean and squares of a convolution's output, left by the kernel that writes it, for the batch norm right behind it."""

from dataclasses import dataclass

from minigan.backend import Array
from minigan.tensor import Tensor


@dataclass(frozen=True)
class Parts:
    """How a convolution's output, as rows of pixels, is cut into parts that each lie in one group of a batch.

    Its rows are computed class by class (one, but of a transposed convolution stride x stride). Numbers of one group:
    class_rows of a class, cut into class_parts of part_rows, the last of which may be shorter. run: so many parts of a
    group stand side by side, then come those of the next one.
    """

    part_rows: int
    class_rows: int
    class_parts: int
    classes: int
    groups: int
    run: int

    @property
    def count(self) -> int:
        return self.groups * self.classes * self.class_parts


# Of each part and channel the mean, and the sum of the squared differences from it.
Known = tuple[Parts, Array, Array]


@dataclass
class Moments:
    """Where a convolution leaves them, if its kernel can, for a batch norm of so many groups; else nothing.

    One is made for each use of the pair of layers (nn.Sequential), and handed to both.
    """

    groups: int = 1
    left: tuple[Array, Known] | None = None

    def leave(self, array: Array, known: Known) -> None:
        """Those of this array."""
        self.left = array, known

    def take(self, x: Tensor, groups: int) -> Known | None:
        """What was left, if it is of this tensor as it was computed, in these groups; nothing stays here."""
        left, self.left = self.left, None
        return left[1] if left and left[0] is x._data and x.version == 0 and groups == self.groups else None
