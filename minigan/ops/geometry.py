"""The sizes of a convolution: strides, paddings, outputs, in one problem description that every leaf function takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

Pair = tuple[int, int]
Padding = int | str | Sequence[int] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class Geometry:
    """One convolution problem: (N, H, W, C) with (K, R, S, C) gives (N, P, Q, K).

    Filter tap (r, s) of output pixel (p, q) reads input pixel (p stride - top + r, q stride - left + s), zero outside.
    """

    n: int
    h: int
    w: int
    c: int
    k: int
    r: int
    s: int
    p: int
    q: int
    stride_h: int
    stride_w: int
    top: int
    left: int

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return self.n, self.h, self.w, self.c

    @property
    def w_shape(self) -> tuple[int, int, int, int]:
        return self.k, self.r, self.s, self.c

    @property
    def operations(self) -> int:
        """Multiplications and additions of each of the three passes, those with padding included."""
        return 2 * self.n * self.p * self.q * self.k * self.r * self.s * self.c

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return self.n, self.p, self.q, self.k


def pair(what: str, value: int | Sequence[int], minimum: int) -> Pair:
    """An int for both axes, or one for each (height, width)."""
    values = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(values) != 2 or any(not isinstance(v, Integral) or isinstance(v, bool) or v < minimum for v in values):
        raise ValueError(f"{what}: expected a whole number from {minimum}, or a pair of them, got {value!r}")
    return int(values[0]), int(values[1])


def convolution(
    what: str, x_shape: tuple[int, ...], w_shape: tuple[int, ...], stride: int | Pair, padding: Padding
) -> Geometry:
    """The convolution of an input (N, H, W, C) with filters (K, R, S, C); P = (H + top + bottom - R) // stride + 1."""
    if len(x_shape) != 4 or len(w_shape) != 4 or x_shape[3] != w_shape[3] or min(w_shape) < 1:
        raise ValueError(f"{what}: expected input NHWC (not NCHW), weight KRSC, of one C, got {x_shape} and {w_shape}")
    (n, h, w, c), (k, r, s, _) = x_shape, w_shape
    strides = pair(f"{what}: stride", stride, 1)
    (top, bottom), (left, right) = _padding(what, padding, (h, w), (r, s), strides)
    if h + top + bottom < r or w + left + right < s:
        raise ValueError(
            f"{what}: expected an input of at least {r} x {s} with its padding, got {h} x {w} padded to "
            f"{h + top + bottom} x {w + left + right}"
        )
    p, q = (h + top + bottom - r) // strides[0] + 1, (w + left + right - s) // strides[1] + 1
    return Geometry(n, h, w, c, k, r, s, p, q, *strides, top, left)


def transposed(
    what: str,
    y_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    stride: int | Pair,
    padding: Padding,
    output_padding: int | Pair,
) -> Geometry:
    """The convolution whose input gradient takes (N, P, Q, K) with filters (K, R, S, C) to (N, H, W, C).

    H = (P - 1) stride - top - bottom + R + output_padding; with "same" padding H = P stride.
    """
    if len(y_shape) != 4 or len(w_shape) != 4 or y_shape[3] != w_shape[0] or min(w_shape) < 1:
        raise ValueError(f"{what}: expected input NPQK (not NKPQ), weight KRSC, of one K, got {y_shape} and {w_shape}")
    (n, p, q, k), (_, r, s, c) = y_shape, w_shape
    strides = pair(f"{what}: stride", stride, 1)
    extra = pair(f"{what}: output_padding", output_padding, 0)
    if extra != (0, 0) and (_is(padding, "same") or extra[0] >= strides[0] or extra[1] >= strides[1]):
        raise ValueError(
            f"{what}: expected an output_padding below the stride {strides}, and 0 with padding 'same', got {extra}"
        )
    pads = _padding(what, padding, (p * strides[0], q * strides[1]), (r, s), strides)
    h, w = (
        n_out * t if _is(padding, "same") else (n_out - 1) * t - sum(ends) + taps + more
        for n_out, t, ends, taps, more in zip((p, q), strides, pads, (r, s), extra, strict=True)
    )
    if min(h, w) < 1:
        raise ValueError(f"{what}: expected an output of at least 1 x 1, got {h} x {w} from padding {padding!r}")
    return Geometry(n, h, w, c, k, r, s, p, q, *strides, pads[0][0], pads[1][0])


def check_padding(what: str, padding: Padding) -> Padding:
    """The padding itself. Raises ValueError if it is of none of the accepted forms."""
    _padding(f"{what}: padding", padding, (1, 1), (1, 1), (1, 1))
    return padding


def _is(padding: Padding, word: str) -> bool:
    return isinstance(padding, str) and padding == word  # an array would compare element by element


def _padding(what: str, padding: Padding, size: Pair, kernel: Pair, stride: Pair) -> tuple[Pair, Pair]:
    """((top, bottom), (left, right)) from any of the accepted forms, for an input of `size`."""
    if _is(padding, "valid"):
        return (0, 0), (0, 0)
    if _is(padding, "same"):
        # TensorFlow's rule: ceil(size / stride) outputs, the smaller half of the padding before.
        totals = [max((-(-n // t) - 1) * t + k - n, 0) for n, k, t in zip(size, kernel, stride, strict=True)]
        return (totals[0] // 2, totals[0] - totals[0] // 2), (totals[1] // 2, totals[1] - totals[1] // 2)
    try:
        if (
            isinstance(padding, Sequence)
            and not isinstance(padding, str)
            and any(isinstance(part, Sequence) for part in padding)
        ):
            vertical, horizontal = padding
            return pair(what, vertical, 0), pair(what, horizontal, 0)
        both = pair(what, padding, 0)  # type: ignore[arg-type]
    except ValueError:
        raise ValueError(
            f"{what}: expected padding 'same', 'valid', a whole number from 0, a pair of them, or "
            f"((top, bottom), (left, right)), got {padding!r}"
        ) from None
    return (both[0], both[0]), (both[1], both[1])
