"""The PTX of every kernel, as NVRTC makes it, executed by the interpreter: assembly strings and all.

The tests of the other files are run again, where they hold for any device; the convolutions get small integers, of
which all products and sums are exact, and have to be right to the last bit.
"""

from collections.abc import Callable, Iterator
from typing import Any

import leaf_checks
import numpy as np
import pytest
import test_adam
import test_batch
import test_batch_norm
import test_conv2d_ladder as ladder
import test_conv2d_moments
import test_elementwise
import test_half
import test_pooling
import test_random
import test_sums
import test_warpgroups
from minigan.kernels import KernelError, load, nvrtc, ptx_interpreter
from minigan.kernels.emulator import executor, options
from minigan.kernels.ptx_interpreter import interpreter
from minigan.kernels.source import Source, Variant, sources

from minigan import optim
from minigan.ops.conv2d_ladder import RUNGS

pytestmark = pytest.mark.skipif(not nvrtc.is_available(), reason=nvrtc.MISSING)

ARCHITECTURE = 80
F32, F64 = "float32", "float64"


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[tuple[str, str]]]:
    """Kernels run on the interpreter, and are noted: (source, kernel)."""
    noted = set()

    def launch(source: Source, variant: Variant, kernel: str, *rest: Any) -> None:
        noted.add((source.label, kernel))
        interpreter.launch(source, variant, kernel, *rest)

    monkeypatch.setattr(ptx_interpreter, "launch", launch)
    monkeypatch.setattr(leaf_checks, "SEEDS", (0,))  # here there is one order
    with options(ptx=ARCHITECTURE):
        yield noted


# ---- everything but convolutions -------------------------------------------------------------------------------------


def adam(dtype: str) -> None:
    """The arrays' addresses travel in a table, so the interpreter is told of them."""
    quadruples = test_adam.arrays(dtype)[:3]
    with ptx_interpreter.reachable(*(a for quadruple in quadruples for a in quadruple)):
        expected = [test_adam.reference(*quadruple, *test_adam.NUMBERS) for quadruple in quadruples]
        optim.adam_update("emulated", quadruples, *test_adam.NUMBERS)
    for (w, _, m, v), (new_w, new_m, new_v) in zip(quadruples, expected, strict=True):
        for found, wanted in ((w, new_w), (m, new_m), (v, new_v)):
            np.testing.assert_allclose(found, wanted, rtol=64 * np.finfo(dtype).eps, atol=16 * np.finfo(dtype).eps)


SHAPE, WINDOWS = (2, 7, 6, 5), ((3, 3), (2, 2), (1, 1))
WORK: dict[str, list[Callable[[], None]]] = {
    "adam.cu": [lambda: adam(F32), lambda: adam(F64)],
    "batch.cu": [lambda: test_batch.test_as_batches((7, 5, 6, 3), -0.3, 0.7)],
    "batch_norm.cu": [
        lambda: test_batch_norm.test_moments_of_parts(33, 1.0, 2.0, 70, 32, 4, 1, False),
        lambda: test_batch_norm.test_gradients((33, 19), F32, test_batch_norm.inputs, 0.2, False),
        lambda: test_batch_norm.test_what_normalises((300, 36), F32, 1e-5),
        lambda: test_batch_norm.test_normalize((19, 36), F64, test_batch_norm.far, 0.2),
        lambda: test_batch_norm.test_normalize_given((19, 36), F32, test_batch_norm.inputs, 0.2),
    ],
    "elements_16_bits.cu": [
        lambda: test_half.test_the_slope_of_a_gradient("fp16", 0.2, 8),
        lambda: test_half.test_elu("bf16", 8),
        lambda: test_half.test_column_sums("bf16", (33, 72)),
        lambda: test_half.test_widening_is_exact("bf16"),
    ],
    "elementwise.cu": [
        lambda: test_elementwise.test_sigmoid(257, F32),
        lambda: test_elementwise.test_sigmoid(19, F64),
        lambda: test_elementwise.test_sigmoid_of_extreme_numbers(),
        lambda: test_elementwise.test_tanh_gradient(33, F32),
        lambda: test_elementwise.test_add_bias((5, 7), F32, 0.2),
    ],
    "elu.cu": [
        lambda: test_elementwise.test_elu(257, F32),
        lambda: test_elementwise.test_elu(19, F64),
        lambda: test_elementwise.test_elu_gradient(33, F32),
    ],
    "graph.cu": [lambda: test_adam.test_words_are_put_into_their_places(19)],
    "leaky_relu.cu": [
        lambda: test_elementwise.test_scale_negative(257, F32),
        lambda: test_elementwise.test_scale_negative(257, F64),
    ],
    "losses.cu": [
        lambda: test_elementwise.test_logistic_loss(33, F32),
        lambda: test_elementwise.test_mean_losses(1025, 3, F32),
        lambda: test_elementwise.test_gradients_of_mean_losses(33, F64),
        lambda: test_elementwise.test_nan_stays(),
    ],
    "max_pool.cu": [
        lambda: test_pooling.test_max_pool(SHAPE, WINDOWS, F32, True),
        lambda: test_pooling.test_put_and_take_maxima(SHAPE, WINDOWS, F32),
        lambda: test_half.test_pooling((*SHAPE[:3], 24), WINDOWS, "bf16"),
    ],
    "random.cu": [
        lambda: test_random.test_published_vectors(),
        lambda: test_random.test_uniform_is_numpys(2**63 + 12345, 2**32 - 3, 33, F32),
        lambda: test_random.test_normal_is_box_and_mullers(1, 5, 19, F32),
        lambda: test_random.test_normal_is_box_and_mullers(1, 5, 19, F64),
    ],
    "sums.cu": [
        lambda: test_sums.test_column_sums((300, 5), F32),
        lambda: test_sums.test_column_sums((64, 512), F32),
        lambda: test_sums.test_nan_stays_in_its_column(),
    ],
    "upsample.cu": [
        lambda: test_pooling.test_upsample_and_sum_blocks((2, 2, 3, 19), 4, F32),
        lambda: test_half.test_upsampling((2, 3, 5, 24), 2, "fp16"),
    ],
}


@pytest.mark.parametrize("name", WORK)
def test_all_kernels_of(name: str, launched: set[tuple[str, str]]) -> None:
    for work in WORK[name]:
        work()
    source = load(name)
    missing = {(source.label, kernel) for kernel in source.kernels} - launched
    assert not missing, f"not launched: {missing}"


def test_no_source_is_forgotten() -> None:
    assert sorted(WORK) == [name for name in sources() if not name.startswith("conv2d/")]


# ---- convolutions ----------------------------------------------------------------------------------------------------


def integers(name: str, g: Any) -> list[np.ndarray]:
    """-2 to 2: sums below 2^24, so that no order of summation, no precision and no rounding changes a bit."""
    arrays = ladder.random_inputs(ladder.PASSES[name], g)
    rng = np.random.default_rng(1)
    for array in arrays:
        array[...] = rng.integers(-2, 3, array.shape)
    return arrays


def check_exact(name: str, g: Any, **settings: Any) -> None:
    what, arrays = ladder.PASSES[name], integers(name, g)
    exact = what.reference(g, *(a.astype(np.float64) for a in arrays))
    assert np.abs(exact).max() < 2**24
    np.testing.assert_array_equal(ladder.run(what, g, arrays, **settings), exact)


def all_of(rung: int) -> set[tuple[str, str]]:
    source = load(f"conv2d/{RUNGS[rung].source}")
    return {(source.label, kernel) for kernel in source.kernels if "moments" not in kernel}


# Ragged along all axes, and more steps than a ring has tiles, so that slots are used anew: in passes along channels, in
# those of the large tiles of sm_90a, in weight gradients. Parity classes, and 8-byte copies of 16-bit operands. Copies
# of one float.
SMALL = ladder.problem((1, 9, 8, 12), (20, 3, 3, 12), 1, "same")
WIDE = ladder.problem((1, 9, 8, 36), (36, 3, 3, 36), 1, "same")
DEEP = ladder.problem((5, 9, 8, 12), (20, 3, 3, 12), 1, "same")
STRIDED = ladder.problem((2, 9, 7, 4), (4, 5, 4, 4), 2, "same")
SINGLE = ladder.problem((2, 7, 6, 3), (5, 3, 3, 3), 1, "same")


@pytest.mark.parametrize("rung", RUNGS)
def test_convolutions(rung: int, launched: set[tuple[str, str]]) -> None:
    spec = RUNGS[rung]
    forced = ladder.forced(rung, 0 if rung > 3 else None)
    for name in ("forward", "input_grad"):
        check_exact(name, WIDE if spec.architecture == 90 else SMALL, **forced)
    check_exact("weight_grad", DEEP if rung > 6 else SMALL, **forced)
    check_exact("weight_grad", SMALL, slices=2, **forced)
    if spec.precision != "fp16":  # whose copies are those of bf16
        for name in ladder.PASSES:
            for g in (STRIDED,) if spec.half else (STRIDED, SINGLE):
                check_exact(name, g, **forced)
    assert launched >= all_of(rung)


@pytest.mark.parametrize(("rung", "tile"), [(6, 1), (9, 1)])
def test_larger_tiles(rung: int, tile: int, launched: set[tuple[str, str]]) -> None:
    check_exact("forward", SMALL, rung=rung, tile=tile)
    assert launched


def test_every_product_of_warpgroups(launched: set[tuple[str, str]]) -> None:
    """The assembly of each is a text of its own."""
    for n in (64, 128, 256):
        np.testing.assert_array_equal(*test_warpgroups.product_tf32(n=n))
        for half in ("bf16", "fp16"):
            for a_by_lines, b_by_lines in ((0, 1), (1, 0)):
                np.testing.assert_array_equal(
                    *test_warpgroups.product(test_warpgroups.SOURCE, half, n, a_by_lines, b_by_lines)
                )
    assert launched


def test_three_columns(launched: set[tuple[str, str]]) -> None:
    check_exact("forward", ladder.problem((2, 9, 37, 20), (3, 5, 4, 20), 1, "same"))
    check_exact("input_grad", ladder.problem((1, 17, 35, 3), (12, 4, 4, 3), 2, "same"))
    source = load("conv2d/three_columns.cu")
    assert {kernel for label, kernel in launched if label == source.label} == set(source.kernels)


@pytest.mark.parametrize("rung", [6, 7, 8])
def test_moments(rung: int, launched: set[tuple[str, str]]) -> None:
    g = ladder.problem((1, 9, 8, 16), (24, 3, 3, 16), 1, "same")
    for name in ("forward", "input_grad"):
        test_conv2d_moments.check_moments(name, g, rung, 0, half=RUNGS[rung].half)
    source = load(f"conv2d/{RUNGS[rung].source}")
    assert launched >= {(source.label, kernel) for kernel in source.kernels if "moments" in kernel}


def test_numbers_that_need_all_bits(launched: set[tuple[str, str]]) -> None:
    """Random ones, to the tolerance that float64 and the precision's arithmetic leave."""
    for rung in (4, 6, 7, 9, 11):
        for what in ladder.PASSES.values():
            arrays = ladder.random_inputs(what, STRIDED)
            result = ladder.run(what, STRIDED, arrays, rung=rung, tile=0)
            ladder.assert_right(what, STRIDED, arrays, result, precision=RUNGS[rung].precision)
    assert launched


@pytest.mark.parametrize("architecture", [75, 90, 120])
def test_other_architectures(architecture: int, launched: set[tuple[str, str]]) -> None:
    """Before sm_80 bf16 is rounded by integers; from sm_100 on another compiler writes the PTX."""
    with options(ptx=architecture):
        for work in (*WORK["elements_16_bits.cu"][:2], *WORK["elementwise.cu"], *WORK["batch_norm.cu"][:1]):
            work()
        check_exact("forward", SMALL, rung=4 if architecture == 75 else 7, tile=0)
    assert launched


def test_what_an_architecture_lacks(launched: set[tuple[str, str]]) -> None:
    with options(ptx=75), pytest.raises(KernelError, match="requires sm_80, not sm_75"):
        check_exact("forward", SMALL, rung=6, tile=0)
    assert launched


def test_the_environment_chooses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_load", None)  # the emulator's
    monkeypatch.setenv("MINIGAN_EMULATOR_PTX", "80")
    test_elementwise.test_scale_negative(33, F32)
