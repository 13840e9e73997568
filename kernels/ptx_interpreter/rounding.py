"""Arithmetic on arrays with PTX's roundings: fused multiply-add, directed modes, flushing to zero, the short formats.

NumPy rounds to nearest even and has no fused multiply-add. Rounding to odd makes up for both: a result that is computed
in double, with its last bit made odd where it is inexact, can be rounded once more to float in any mode without harm
(Boldo and Melquiond 2008, "Emulation of a FMA and correctly rounded sums").
"""

import numpy as np

Array = np.ndarray


def flush(x: Array) -> Array:
    """.ftz: denormal floats become zeros of the same sign."""
    if x.dtype != np.float32:
        return x
    bits = x.view(np.uint32)
    denormal = (bits & 0x7FFFFFFF) - np.uint32(1) < 0x7FFFFF  # 0 - 1 is large
    return np.where(denormal, bits & 0x80000000, bits).view(np.float32) if denormal.any() else x


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Double: (the rounded sum, its error). Exact (Knuth)."""
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """Double: (the rounded product, its error). Exact where nothing overflows (Dekker)."""
    parts = []
    for x in (a, b):
        scaled = x * 134217729.0  # 2**27 + 1
        high = scaled - (scaled - x)
        parts.append((high, x - high))
    (a1, a2), (b1, b2) = parts
    product = a * b
    return product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2


def sum_to_odd(a: Array, b: Array) -> Array:
    """a + b in double, rounded to odd."""
    total, error = two_sum(a, b)
    inexact = np.isfinite(total) & (error != 0) & (total.view(np.uint64) & np.uint64(1) == 0)
    towards = np.where(error > 0, np.inf, -np.inf)
    return np.where(inexact, np.nextafter(total, towards), total)


def to_float(x: Array, mode: str = "rn") -> Array:
    """Double to float: rn to nearest even, rz towards zero, rm down."""
    y = x.astype(np.float32)
    if mode == "rn":
        return y
    wrong = y > x if mode == "rm" else np.abs(y.astype(np.float64)) > np.abs(x)
    return np.where(wrong, np.nextafter(y, np.float32(0) if mode == "rz" else np.float32(-np.inf)), y)


def add(a: Array, b: Array, mode: str = "rn") -> Array:
    if mode == "rn":
        return a + b
    return to_float(sum_to_odd(a.astype(np.float64), b.astype(np.float64)), mode)


def fma(a: Array, b: Array, c: Array, mode: str = "rn") -> Array:
    """a * b + c, rounded once."""
    if a.dtype == np.float32:  # the product is exact in double
        return to_float(sum_to_odd(a.astype(np.float64) * b, c.astype(np.float64)), mode)
    high, low = two_product(a, b)
    c_high, c_low = two_sum(c + np.zeros_like(low), low)
    total, error = two_sum(high, c_high)
    exact = total + sum_to_odd(error, c_low)
    return np.where(np.isfinite(exact), exact, a * b + c)


def to_tf32(x: Array) -> Array:
    """float -> bits of a float with 10 mantissa bits, to nearest, ties away from zero (rna)."""
    bits = x.view(np.uint32)
    return np.where(np.isfinite(x), (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000), bits)


def to_bf16(x: Array) -> Array:
    """float -> the 16 bits of a bf16, to nearest even."""
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), 0x7FFF, rounded).astype(np.uint16)


def to_fp16(x: Array) -> Array:
    """float -> the 16 bits of an fp16, to nearest even."""
    return np.where(np.isnan(x), np.uint16(0x7FFF), x.astype(np.float16).view(np.uint16))


def widen(bits: Array, kind: str) -> Array:
    """What tensor cores see in the registers' or the memory's bits: bf16 and fp16 (uint16), or tf32 (uint32)."""
    if kind == "tf32":
        return (bits & np.uint32(0xFFFFE000)).view(np.float32)
    return (
        bits.view(np.float16).astype(np.float32) if kind == "f16" else (bits.astype(np.uint32) << 16).view(np.float32)
    )


def to_integer(x: Array, dtype: np.dtype) -> Array:
    """A whole float as an integer; beyond its range the nearest, NaN is 0."""
    limits = np.iinfo(dtype)
    inside = np.where((x >= float(limits.min)) & (x < float(limits.max)), x, 0).astype(dtype)
    result = np.where(x >= float(limits.max), dtype.type(limits.max), inside)
    return np.where(x < float(limits.min), dtype.type(limits.min), result)
