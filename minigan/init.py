"""How weights start. Each function takes a shape, and returns a float32 array drawn from minigan's generator."""

from collections.abc import Callable

import numpy as np

from minigan.random import generator

Initializer = Callable[[tuple[int, ...]], np.ndarray]


def glorot_uniform(shape: tuple[int, ...]) -> np.ndarray:
    """Uniform in +-sqrt(6 / (fan_in + fan_out)).   Glorot and Bengio, 2010; Keras's default.

    shape: (out, in), or (K, R, S, C) with fans R S C and R S K.
    """
    taps = int(np.prod(shape[1:-1]))
    limit = (6 / (taps * (shape[0] + shape[-1]))) ** 0.5
    return generator().uniform(-limit, limit, shape).astype(np.float32)


def truncated_normal(std: float = 0.02) -> Initializer:
    """Normal with mean 0, redrawn beyond two standard deviations, as TensorFlow's initialiser of that name."""

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        values = generator().standard_normal(int(np.prod(shape)), np.float32)
        outside = np.flatnonzero(np.abs(values) > 2)
        while outside.size:
            values[outside] = generator().standard_normal(outside.size, np.float32)
            outside = outside[np.abs(values[outside]) > 2]
        return (values * np.float32(std)).reshape(shape)

    return draw


def zeros(shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape, np.float32)


def ones(shape: tuple[int, ...]) -> np.ndarray:
    return np.ones(shape, np.float32)
