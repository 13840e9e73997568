"""A convolution's three passes as things to compare: operands, arithmetic and bytes, float64 judge, tolerance, runners.

The judge. One loop over the filter's taps, a matrix product each, in float64: neither minigan's way nor cuDNN's.

The tolerance. An output is a sum of n products; let s be the square root of the sum of their squares, the size of such
a sum for random signs, and u = 2^-24 float32's rounding. An addition rounds by u / sqrt(3) of its partial sum on
average, and the partial sum after k products has the size s sqrt(k / n): n such errors of random signs come to
s u sqrt(n / 6). As the product of two random quantities, the partial sums' size and the roundings, this has the tail
exp(-t): among the 2^26 outputs of the largest layer, the largest error is 18 times it. 24 times, and two roundings of
the result, are allowed: (10 sqrt(n) + 2) u s. A product too few or too many is an error of s / sqrt(n), which is more
for every n that occurs, and a thousand times more where n is about 1500.
TF32 rounds both factors of a product by 2^-11 at most, by 0.82 * 2^-11 s together on average; six times that, 5 *
2^-11 s, is allowed besides. bf16 and fp16 inputs are drawn so that they are exact. minigan's results are float32 in
every precision; a peer's, in 16 bits, are rounded once, by 2^-8 and 2^-11 of themselves at most (bf16 has 8 significant
bits, fp16 11), and twice that is allowed, for sums made in two rounded parts. Every comparison is written so that NaN
fails.

Winograd's filtering, which minigan's CPU leaf takes for some layers in float32, adds up fewer products, but larger
ones than its results: the errors of its sums are amplified, and those of an output come from its whole tile, also where
the output itself reads little but padding. `winograd_error` derives from the transforms' matrices by how much; 24 times
that is allowed where `conv2d_winograd.suits` says so, relative to the largest s of a result.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np

from minigan.backend import Array, array_module, to_device
from minigan.ops import conv2d_cpu, conv2d_cuda, conv2d_ladder, conv2d_launch, conv2d_winograd, winograd
from minigan.ops.geometry import Geometry

PASSES = ("forward", "input_grad", "weight_grad")

# What a pass reads, what it writes: x (N, H, W, C), w (K, R, S, C), gy (N, P, Q, K) by their names.
READS = {"forward": ("x", "w"), "input_grad": ("gy", "w"), "weight_grad": ("x", "gy")}
WRITES = {"forward": "gy", "input_grad": "x", "weight_grad": "w"}

Operands = Mapping[str, Array]


@dataclass(frozen=True)
class Precision:
    """How a kernel and its peer compute: what values they take, and by what their results may be off.

    minigan's arrays are float32 in every precision, as in training; what rounds them to 16 bits is part of its time.
    """

    name: str
    torch_dtype: str  # of the peer's arrays
    allow_tf32: bool
    product: float  # error of a product of two inputs, over its size; see the tolerance above
    output: float  # rounding of the peer's output, over itself
    transforms: float = 0.0  # error of an output by Winograd's filtering, over the largest size


PRECISIONS = {
    one.name: one
    for one in (
        Precision("float32", "float32", False, 0.0, 0.0),
        Precision("tf32", "float32", True, 5 * 2.0**-11, 0.0),
        Precision("bf16", "bfloat16", False, 0.0, 2 * 2.0**-8),
        Precision("fp16", "float16", False, 0.0, 2 * 2.0**-11),
    )
}


def shapes(g: Geometry) -> dict[str, tuple[int, int, int, int]]:
    return {"x": g.x_shape, "w": g.w_shape, "gy": g.y_shape}


def operations(g: Geometry) -> int:
    """Floating-point operations of a pass: a multiplication and an addition for each tap, also for taps on padding."""
    return 2 * g.n * g.p * g.q * g.k * g.r * g.s * g.c


def traffic(g: Geometry, name: str, itemsize: int = 4) -> int:
    """The fewest bytes a pass can move: each operand read once, the result written once."""
    return sum(int(np.prod(shapes(g)[one])) for one in (*READS[name], WRITES[name])) * itemsize


def longest_sum(g: Geometry, name: str) -> int:
    if name == "forward":
        return g.r * g.s * g.c
    if name == "input_grad":
        return -(-g.r // g.stride_h) * -(-g.s // g.stride_w) * g.k
    return g.n * g.p * g.q


# ---- the error of Winograd's filtering -------------------------------------------------------------------------------


def _way_back(back: np.ndarray, left: np.ndarray, right: np.ndarray, products: float) -> tuple[np.ndarray, np.ndarray]:
    """Of each output, `back` times the products of two transformed operands of variance 1, over its variance:

    the sum of its terms' variances, and the sum of those of all terms and partial sums, point by point.
    """
    covariance = (left @ left.T) * (right @ right.T) / products
    terms = back**2 @ np.diag(covariance)
    sums = [sum(row[:k] @ covariance[:k, :k] @ row[:k] for k in range(1, len(row) + 1)) for row in back]
    return terms, terms + sums


def winograd_matrices(taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """B^T (n, n), G (n, taps) and A (n, 4), as `winograd.transform` has them, in float64."""
    t = winograd.transform(taps, np.dtype(np.float64))
    dense = []
    for matrix, width in ((t.input, t.points), (t.filter, taps), (t.gradient, winograd.TILE)):
        full = np.zeros((t.points, width))
        for row, columns, values in zip(full, matrix.columns, matrix.coefficients, strict=True):
            np.add.at(row, columns, values)
        dense.append(full)
    return dense[0], dense[1], dense[2]


def winograd_error(g: Geometry, name: str) -> tuple[float, float]:
    """The standard deviation of an output's error, in units of u s, for operands of one variance.

    On average over a tile, and at the tile's worst place. s is the size of an output that reads no padding.

    Roundings by u / sqrt(3) of random signs, as above. Let a be the amplification of an output: the sum over the points
    of the variances of its terms, over s^2; it is the product of the two axes'. Then, in units of (u s)^2:
    - the sums of L products at a point: a (L / 6 + 1);
    - the transforms of both operands, two passes each, where a value is the sum of at most m independent terms: a m / 3
      for each pass; and a / 3 for each of the two passes with G, whose coefficients are rounded;
    - the way back, along one axis and then along the other: 1 / 3 for each partial sum and each term, of what size they
      have; the terms are not independent (they cancel), so that is computed from their covariances. The first pass's
      errors are amplified by the second.
    Groups of taps that are not full, and tiles that are not, count as if they were.
    """
    size, tile = winograd.group_size(g.r, g.stride_h), winograd.TILE
    b, filters, gradients = winograd_matrices(size)
    if name == "weight_grad":
        tiles_h, tiles_w = -(-g.p // tile), -(-g.q // tile)
        length, other, back, outputs = g.n * tiles_h * tiles_w, gradients, filters.T, (g.p / tiles_h, g.q / tiles_w)
    else:
        turned = name == "input_grad"
        if (
            turned and g.stride_h > 1
        ):  # each remainder of the pixels by itself: that with the most taps has the largest s
            groups, taps = 1, -(-g.r // g.stride_h)
        else:
            groups, taps = g.stride_h * -(-g.r // (g.stride_h * size)), g.r
        length, other, back = groups**2 * (g.k if turned else g.c), filters, gradients.T
        outputs = taps / groups, taps / groups
    (high, rounded_h), (wide, rounded_w) = (_way_back(back, b, other, products) for products in outputs)
    most = sum(int(np.count_nonzero(m, axis=1).max()) for m in (b, other))
    variance = (length / 6 + 1 + 2 * (most + 1) / 3) * np.outer(high, wide)
    variance += (np.outer(rounded_h, wide) + rounded_w) / 3
    return float(np.sqrt(variance.mean())), float(np.sqrt(variance.max()))


def cpu_precision(g: Geometry, name: str) -> Precision:
    """float32, with what `conv2d_cpu` may be off by where it takes Winograd's filtering."""
    single = PRECISIONS["float32"]
    if not conv2d_winograd.suits(g):
        return single
    return replace(single, transforms=24 * winograd_error(g, name)[1] * 2.0**-24)


# ---- operands -------------------------------------------------------------------------------------------------------


def draw(g: Geometry, seed: int = 0) -> dict[str, np.ndarray]:
    """Random normal x, w and gy, float32: never zeros, which hide wrong indices and run faster."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes(g).items()}


def rounded(values: np.ndarray, precision: Precision) -> np.ndarray:
    """float32 values that the peer's arrays can hold exactly. TF32 is not: its kernels round by themselves."""
    if precision.name == "fp16":
        return values.astype(np.float16).astype(np.float32)
    if precision.name == "bf16":
        bits = values.view(np.uint32)
        return (bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000).view(np.float32)  # to nearest, ties to even
    return values


# ---- the judge -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judge:
    """What a pass should give, in float64, and how far off each element may be.

    part: the index of what is judged, of a result of this shape. described: the same in words.
    """

    exact: Array
    size: Array  # s of the tolerance
    terms: int
    shape: tuple[int, ...]
    part: tuple[Any, ...]
    described: str

    def worst(self, result: Array, precision: Precision, is_peer: bool = False) -> float:
        """The largest error, in units of what is allowed: right if at most 1; NaN if any element is not finite."""
        if result.shape != self.shape:
            raise ValueError(f"expected a result of shape {self.shape}, got {result.shape}")
        xp = _module(result)
        if not bool(xp.isfinite(result).all()):
            return float("nan")
        allowed = ((10 * self.terms**0.5 + 2) * 2.0**-24 + precision.product) * self.size
        if precision.transforms:
            allowed = xp.maximum(allowed, precision.transforms * xp.max(self.size))
        if is_peer:
            allowed = allowed + precision.output * xp.abs(self.exact)
        difference = xp.abs(result[self.part].astype(np.float64) - self.exact)
        # Where nothing is summed up (a pixel that no output reads) nothing may be off; and 0 / 0 is no error.
        return float(xp.max(difference / xp.maximum(allowed, np.finfo(np.float64).tiny)))


def judge(g: Geometry, name: str, operands: Operands, most: float | None = None) -> Judge:
    """The float64 judge of a pass.

    most: floating-point operations to spend on it. If the pass takes more, only some images of an output or of an
    input gradient are judged, the first and the last among them, or some filters of a weight gradient. (That every
    element is finite is looked at in all of it.)
    """
    count = g.k if name == "weight_grad" else g.n
    keep = count if most is None else max(1, min(count, int(count * most / operations(g))))
    chosen = np.unique(np.linspace(0, count - 1, keep).round().astype(int)) if keep > 1 else np.array([count - 1])
    xp = _module(operands["x"])
    x, w, gy = operands["x"], operands["w"], operands["gy"]
    part: tuple[Any, ...] = (slice(None),) if keep == count else (xp.asarray(chosen),)
    if name == "weight_grad":
        gy, g_part = gy[..., part[0]], replace(g, k=keep)
    else:
        x, gy, g_part = x[part[0]], gy[part[0]], replace(g, n=keep)
    small = {"x": x, "w": w, "gy": gy}
    first, second = (small[one].astype(np.float64) for one in READS[name])
    exact = reference(g_part, name, first, second)
    size = xp.sqrt(reference(g_part, name, first**2, second**2))
    what = "filters" if name == "weight_grad" else "images"
    described = "all" if keep == count else f"{keep} of {count} {what}"
    return Judge(exact, size, longest_sum(g, name), shapes(g)[WRITES[name]], part, described)


def reference(g: Geometry, name: str, first: Array, second: Array) -> Array:
    """A pass by one matrix product for each tap, of the two operands that it READS, on NumPy's or CuPy's arrays."""
    xp = _module(first)
    height = max(g.top + g.h, (g.p - 1) * g.stride_h + g.r)
    width = max(g.left + g.w, (g.q - 1) * g.stride_w + g.s)
    padded = xp.zeros((g.n, height, width, g.c), first.dtype)
    inside = (slice(None), slice(g.top, g.top + g.h), slice(g.left, g.left + g.w))
    if name != "input_grad":
        padded[inside] = first
    result = xp.zeros(shapes(g)[WRITES[name]], first.dtype)
    for r, s in np.ndindex(g.r, g.s):
        rows = slice(r, r + (g.p - 1) * g.stride_h + 1, g.stride_h)
        columns = slice(s, s + (g.q - 1) * g.stride_w + 1, g.stride_w)
        if name == "forward":
            result += (padded[:, rows, columns].reshape(-1, g.c) @ second[:, r, s].T).reshape(g.y_shape)
        elif name == "input_grad":
            padded[:, rows, columns] += (first.reshape(-1, g.k) @ second[:, r, s]).reshape(g.n, g.p, g.q, g.c)
        else:
            result[:, r, s] = second.reshape(-1, g.k).T @ padded[:, rows, columns].reshape(-1, g.c)
    return padded[inside] if name == "input_grad" else result


def _module(array: Array) -> ModuleType:
    return array_module("cpu" if isinstance(array, np.ndarray) else "cuda")


# ---- minigan's side --------------------------------------------------------------------------------------------------


def on_cpu(g: Geometry, name: str, operands: Operands) -> Callable[[], Array]:
    """minigan's CPU leaf of a pass, ready to be called."""
    first, second = (operands[one] for one in READS[name])
    leaf = getattr(conv2d_cpu, name)
    return lambda: leaf(first, second, g)


def on_rung(g: Geometry, name: str, operands: Operands, device: str, rung: int) -> Callable[[], Array]:
    """A rung of the ladder, on "cuda" or "emulated", ready to be called. It chooses its tile as it does in training."""
    first, second = (operands[one] for one in READS[name])
    three = rung == conv2d_ladder.THREE_COLUMNS
    leaf, precision = getattr(conv2d_cuda, name), "float32" if three else conv2d_ladder.RUNGS[rung].precision
    return lambda: leaf(device, first, second, g, precision=precision, rung=rung)


def chosen_rung(g: Geometry, name: str, device: str, precision: str) -> int:
    """The rung that minigan takes for this pass when none is named."""
    if conv2d_ladder.suits_three_columns(name, g):
        return conv2d_ladder.THREE_COLUMNS
    return conv2d_ladder.choose_rung(g, "float32", conv2d_launch.architecture(device), precision)


def upload(operands: Mapping[str, np.ndarray], device: str) -> dict[str, Array]:
    return {name: to_device(values, device) for name, values in operands.items()}


@contextmanager
def poisoned(device: str) -> Iterator[None]:
    """Inside, whatever is allocated as empty is full of NaN (all bits set), so that an element not written is seen.

    Compile first: Numba must not see the replacement.
    """
    xp = array_module(device)
    empty = xp.empty

    def full(shape: Any, dtype: Any = float, *args: Any, **settings: Any) -> Array:
        array = empty(shape, dtype, *args, **settings)
        if array.ndim and array.dtype.kind in "fiu" and array.flags.c_contiguous:
            array.view(np.uint8).fill(0xFF)
        return array

    with mock.patch.object(xp, "empty", full):
        yield
