"""Where results depend on the number of threads: nowhere on the CPU, for each op of the registry and its gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from engine_compare import assert_same
from test_ops import OPS

import minigan as mg
from minigan import cpu
from minigan.ops import geometry

Case = tuple[list[np.ndarray], dict[str, Any]]

# More than five threads' least shares, and no multiple of any number of threads or of a vector's length.
SHAPE = (7, 229, 11, 19)
SIZE = 7 * 229 * 11 * 19
IMAGES = (5, 38, 42, 47)


def draw(*shapes: tuple[int, ...], positive: bool = False) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    drawn = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    return [np.abs(a) + np.float32(0.1) for a in drawn] if positive else drawn


def same_shape(count: int, positive: bool = False, **settings: Any) -> Callable[[], list[Case]]:
    return lambda: [(draw(*[SHAPE] * count, positive=positive), settings)]


def convolutions(*operands: str) -> Callable[[], list[Case]]:
    """im2col by blocks, by columns, by taps and for three channels; Winograd's by blocks and by parts of channels."""
    problems = [
        geometry.convolution("test", *sizes)
        for sizes in (
            ((5, 33, 31, 3), (33, 5, 5, 3), 2, "same"),
            ((3, 17, 19, 33), (40, 4, 3, 33), 2, "same"),
            ((2, 4, 4, 130), (300, 4, 4, 130), 1, "valid"),
            ((4, 33, 31, 40), (48, 3, 3, 40), 1, "same"),
            ((5, 31, 29, 64), (90, 4, 4, 64), 2, "same"),
        )
    ]

    def make() -> list[Case]:
        shapes = [{"x": g.x_shape, "w": g.w_shape, "gy": g.y_shape, "bk": (g.k,), "bc": (g.c,)} for g in problems]
        return [(draw(*(s[name] for name in operands)), {"geometry": g}) for g, s in zip(problems, shapes, strict=True)]

    return make


def pooling(of_outputs: bool) -> Callable[[], list[Case]]:
    """PutMaxima takes values of outputs, TakeMaxima of inputs; the index is that of windows of 2 x 2."""

    def make() -> list[Case]:
        n, h, w, c = IMAGES
        rows, columns = np.indices((h // 2, w // 2)) * 2
        index = np.broadcast_to((rows * w + columns)[:, :, None], (n, h // 2, w // 2, c)).astype(np.int32)
        settings = {"index": index, "size": (h, w), "windows": ((2, 2), (2, 2), (0, 0))}
        return [(draw(index.shape if of_outputs else IMAGES), settings)]

    return make


CASES: dict[str, Callable[[], list[Case]]] = {
    **{name: same_shape(1) for name in ("Abs", "Exp", "Negate", "Sigmoid", "Tanh", "MeanOverRanks")},
    **{name: same_shape(1, positive=True) for name in ("Log", "Sqrt")},
    **{name: same_shape(2) for name in ("Add", "Subtract", "Multiply", "MeanAbsoluteDifference")},
    **{name: same_shape(2) for name in ("LogisticLoss", "MeanLogisticLoss")},
    **{name: same_shape(2, positive=True) for name in ("Divide", "Power")},
    "AddAt": same_shape(1, index=[0, 2, 2, 3, 5, 1, 0], shape=SHAPE),
    "BatchNorm": lambda: [(draw(IMAGES, IMAGES[3:], IMAGES[3:]), {"epsilon": 1e-3, "synchronised": False})],
    "BroadcastTo": lambda: [(draw(SHAPE[1:]), {"shape": SHAPE})],
    "Clip": same_shape(1, low=-1.0, high=1.0),
    "Concatenate": same_shape(3, axis=1),
    "Conv2d": convolutions("x", "w", "bk"),
    "Conv2dInputGrad": convolutions("gy", "w", "bc"),
    "Conv2dWeightGrad": convolutions("x", "gy"),
    "ELU": same_shape(1, alpha=1.3),
    "ELUGrad": same_shape(2, alpha=1.3),
    "GetItem": same_shape(1, index=(slice(None), [3, 3, 1])),
    "LeakyReLU": same_shape(1, slope=0.2),
    "Linear": lambda: [(draw((64, 300), (5001, 300)), {})],
    "Matmul": lambda: [(draw((1001, 130), (130, 95)), {}), (draw((64, 300), (300, 5001)), {}),
                       (draw((3, 190, 210), (210, 170)), {})],
    "MaxPool2d": lambda: [(draw(IMAGES), {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)})],
    "Pad": same_shape(1, widths=((0, 0), (1, 2), (0, 3), (0, 0))),
    "PutMaxima": pooling(of_outputs=True),
    "Reshape": same_shape(1, shape=(SIZE // 11, 11)),
    "ScaleNegative": same_shape(2, slope=0.3),
    "Sum": lambda: [(draw(SHAPE), {"axis": axis, "keepdims": False}) for axis in (None, (0, 1, 2), 1)],
    "SumBlocks2d": lambda: [(draw(IMAGES), {"scale": 2})],
    "TakeMaxima": pooling(of_outputs=False),
    "TanhGrad": same_shape(2),
    "Transpose": same_shape(1, axes=(2, 0, 3, 1)),
    "UpsampleNearest2d": lambda: [(draw(IMAGES), {"scale": 2})],
}  # fmt: skip

# What is cut for the threads, in these cases; all else is done by the calling thread alone.
CUT = {
    "BatchNorm",
    "Conv2d",
    "Conv2dInputGrad",
    "Conv2dWeightGrad",
    "ELU",
    "ELUGrad",
    "LeakyReLU",
    "Linear",
    "Matmul",
    "MaxPool2d",
}
CUT |= {"PutMaxima", "ScaleNegative", "Sum", "SumBlocks2d", "TakeMaxima", "Tanh", "TanhGrad", "UpsampleNearest2d"}


def test_each_op_has_a_case() -> None:
    assert set(CASES) == set(OPS)
    assert SIZE > 5 * cpu.ELEMENTS_PER_THREAD < np.prod(IMAGES)


@pytest.mark.parametrize("name", sorted(CASES))
def test_results_do_not_depend_on_the_number_of_threads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and gradients, bit by bit, with 1, 2, 3 and 5 threads."""
    shares: list[int] = []
    run = cpu._Team.run

    def seen(team: cpu._Team, work: Sequence[Callable[[], None]]) -> None:
        shares.append(len(work))
        run(team, work)

    monkeypatch.setattr(cpu._Team, "run", seen)

    def results() -> list[np.ndarray]:
        found = []
        for arrays, settings in CASES[name]():
            xs = [mg.tensor(a, requires_grad=True) for a in arrays]
            y = OPS[name](**settings)(*xs)  # type: ignore[call-arg]
            gy = mg.tensor(np.random.default_rng(1).standard_normal(y.shape).astype(np.float32))
            gradients = mg.grad(y, xs, gy, allow_unused=True)
            found += [y.numpy(), *(g.numpy() for g in gradients if g is not None)]
        return found

    expected: list[np.ndarray] = []
    try:
        for count in (1, 2, 3, 5):
            monkeypatch.setenv("MINIGAN_NUM_THREADS", str(count))
            cpu._team_of.cache_clear()
            actual = results()
            expected = expected or actual
            assert all(np.isfinite(a).all() for a in actual)
            for a, b in zip(actual, expected, strict=True):
                assert_same(a, b)
    finally:
        cpu._team_of.cache_clear()
    assert (name in CUT) == (max(shares, default=1) >= 5)
