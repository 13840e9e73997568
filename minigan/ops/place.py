"""What the layers of a chain do for each other on a GPU."""

from dataclasses import dataclass

from minigan.ops.moments import Moments


@dataclass(frozen=True)
class Place:
    """A layer's place in a chain, as nn.Sequential has planned it. By itself a layer does nothing for others.

    slope: of a LeakyReLU right behind the layer, which is computed along, so that what lies between is neither written
    nor kept; 1: there is none. elu: that is an ELU, behind a convolution, and slope its alpha. half: the result
    may be kept in 16 bits, as all who read it take such; where convolutions multiply such, it is. moments: where a
    convolution leaves those of its output, for the batch norm behind it, which finds them there and need not read the
    output for them.
    """

    slope: float = 1.0
    half: bool = False
    moments: Moments | None = None
    elu: bool = False


ALONE = Place()
