"""How the engine's tests compare arrays and errors: a NaN, another shape or another dtype never passes."""

import re
from typing import Any

import numpy as np
import pytest

import minigan as mg


def array(value: Any) -> np.ndarray:
    """The NumPy array of a minigan tensor, a PyTorch tensor or an array."""
    if isinstance(value, mg.Tensor):
        return value.numpy()
    return value.detach().numpy() if hasattr(value, "detach") else np.asarray(value)


def assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    """|actual - expected| <= tolerance * max(1, |expected|'s maximum), everywhere, and of one shape."""
    actual, expected = array(actual), array(expected)
    assert actual.shape == expected.shape, f"shape: expected {expected.shape}, got {actual.shape}"
    if not actual.size:
        return
    difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    limit = tolerance * max(1.0, float(np.max(np.abs(expected))))
    # "not <=" instead of ">", so that a NaN fails
    assert np.all(difference <= limit), f"expected a difference of at most {limit:.3g}, got {difference.max():.3g}"


def assert_same(actual: Any, expected: Any) -> None:
    """Equal to the last bit, and of one shape and dtype; NaN equals nothing."""
    actual, expected = array(actual), array(expected)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    assert np.array_equal(actual, expected)


def rounding(dtype: Any) -> float:
    """What rounding alone may do to a sum of some hundred products of numbers about 1, relative to the largest result.

    Errors of single operations, eps each, grow as the root of their number: 500 terms give about 22 eps. Some results
    are the sum of fewer, larger terms that cancel; four times as much leaves room for these, and for no mistake.
    """
    return 100 * float(np.finfo(dtype).eps)


def assert_one_line(error: pytest.ExceptionInfo, *words: str) -> None:
    """The error says in one line what was expected and what came; `words` are regular expressions in it."""
    message = str(error.value.args[0])
    assert "\n" not in message
    for word in ("expected", *words):
        assert re.search(word, message), f"expected {word!r} in: {message}"
