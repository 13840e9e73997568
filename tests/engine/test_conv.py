"""The convolutions: their geometry, their values against PyTorch's, their adjointness, and how they are computed."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from engine_compare import assert_close, assert_one_line, assert_same, rounding

import minigan as mg
import minigan.functional as F
from minigan import cpu
from minigan.ops import conv2d_cpu, conv2d_im2col, conv2d_turned, geometry, patches
from minigan.ops.conv2d import Conv2d, Conv2dInputGrad, Conv2dWeightGrad
from minigan.ops.geometry import Geometry

# ---- geometry ------------------------------------------------------------------------------------------------------


def same(size: int, kernel: int, stride: int) -> tuple[int, int, int]:
    """P, and the padding before and after, of a SAME convolution along one axis."""
    g = geometry.convolution("conv2d", (1, size, size, 1), (1, kernel, kernel, 1), stride, "same")
    assert (g.p, g.top) == (g.q, g.left)
    # What the last output reads beyond the input's end is the padding after.
    return g.p, g.top, max((g.p - 1) * stride + kernel - g.top - size, 0)


# systems.md's cases on even inputs, then odd inputs and kernels below the stride, by its formula.
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [
        (128, 4, 2, (64, 1, 1)),
        (128, 5, 2, (64, 1, 2)),
        (128, 5, 1, (128, 2, 2)),
        (128, 3, 1, (128, 1, 1)),
        (8, 4, 2, (4, 1, 1)),
        (8, 5, 2, (4, 1, 2)),
        (8, 5, 1, (8, 2, 2)),
        (8, 3, 1, (8, 1, 1)),
        (8, 3, 2, (4, 0, 1)),
        (8, 2, 1, (8, 0, 1)),
        (8, 4, 1, (8, 1, 2)),
        (7, 5, 2, (4, 2, 2)),
        (7, 4, 2, (4, 1, 2)),
        (7, 3, 2, (4, 1, 1)),
        (7, 3, 3, (3, 1, 1)),
        (5, 2, 3, (2, 0, 0)),
        (7, 1, 2, (4, 0, 0)),
        (9, 2, 3, (3, 0, 0)),
        (1, 5, 2, (1, 2, 2)),
        (2, 5, 2, (1, 1, 2)),
        (1, 1, 1, (1, 0, 0)),
    ],
)
def test_same_padding(size: int, kernel: int, stride: int, expected: tuple[int, int, int]) -> None:
    assert same(size, kernel, stride) == expected


def test_same_padding_at_its_two_axes() -> None:
    g = geometry.convolution("conv2d", (1, 7, 8, 1), (1, 4, 5, 1), (2, 1), "same")
    assert (g.p, g.q, g.top, g.left) == (4, 8, 1, 2)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 19, 33])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
def test_transposed_same_is_the_input_gradient_of_same(size: int, stride: int, kernel: int) -> None:
    """H = P stride, cropped as the SAME convolution of that output pads; so k5 s2 crops 1 before."""
    g = geometry.transposed("conv_transpose2d", (2, size, size, 3), (3, kernel, kernel, 4), stride, "same", 0)
    assert (g.h, g.w) == (size * stride, size * stride)
    assert g == geometry.convolution("conv2d", (2, size * stride, size * stride, 4), g.w_shape, stride, "same")
    assert g.top == g.left == max(kernel - stride, 0) // 2


def test_transposed_valid_and_explicit() -> None:
    def size(padding: Any, output_padding: Any = 0) -> tuple[int, int]:
        g = geometry.transposed("t", (1, 4, 5, 1), (1, 3, 4, 1), (2, 3), padding, output_padding)
        return g.h, g.w

    assert size("valid") == size(0) == ((4 - 1) * 2 + 3, (5 - 1) * 3 + 4)
    assert size("valid", (1, 2)) == (10, 18)
    assert size(((1, 0), (2, 1))) == (8, 13)
    assert size(((1, 0), (2, 1)), 1) == (9, 14)


@pytest.mark.parametrize("padding", [0, "valid", (0, 0), [0, 0], ((0, 0), (0, 0)), [[0, 0], [0, 0]]])
def test_forms_of_no_padding(padding: Any) -> None:
    assert geometry.convolution("c", (1, 7, 8, 1), (1, 3, 3, 1), 2, padding) == Geometry(
        1, 7, 8, 1, 1, 3, 3, 3, 3, 2, 2, 0, 0
    )


def test_forms_of_padding() -> None:
    def form(padding: Any) -> tuple[int, ...]:
        g = geometry.convolution("c", (1, 8, 8, 1), (1, 3, 3, 1), 1, padding)
        return g.p, g.q, g.top, g.left

    assert form(1) == (8, 8, 1, 1)
    assert form((1, 2)) == form([1, 2]) == form(((1, 1), (2, 2))) == (8, 10, 1, 2)
    assert form(((0, 1), (2, 3))) == form([[0, 1], [2, 3]]) == form(((0, 1), [2, 3])) == (7, 11, 0, 2)


def ones(*shape: int) -> mg.Tensor:
    return mg.tensor(np.ones(shape))


ERRORS: list[tuple[Any, tuple[str, ...]]] = [
    (lambda: F.conv2d(ones(8, 8, 1), ones(1, 3, 3, 1)), (r"\(8, 8, 1\)",)),
    (lambda: F.conv2d(ones(1, 8, 8, 1), ones(3, 3, 1)), (r"\(3, 3, 1\)",)),
    (lambda: F.conv2d(ones(1, 8, 8, 2), ones(1, 3, 3, 1)), (r"\(1, 8, 8, 2\)", r"\(1, 3, 3, 1\)")),
    (lambda: F.conv2d(ones(1, 2, 8, 1), ones(1, 3, 3, 1)), ("at least 3 x 3", "2 x 8")),
    (lambda: F.conv2d(ones(1, 8, 1, 1), ones(1, 4, 4, 1), padding=1), ("8 x 1 padded to 10 x 3",)),
    (lambda: F.conv2d(ones(1, 8, 8, 1), ones(1, 3, 3, 1), ones(2)), (r"bias of shape \(1,\)", r"got \(2,\)")),
    (lambda: F.conv2d(ones(1, 8, 8, 1), ones(1, 3, 3, 1), ones(1, 1)), (r"bias of shape \(1,\)", r"got \(1, 1\)")),
    (lambda: F.conv2d(ones(1, 8, 8, 1), ones(0, 3, 3, 1)), (r"\(0, 3, 3, 1\)",)),
    (lambda: F.conv2d(ones(1, 8, 8, 0), ones(1, 3, 3, 0)), (r"\(1, 8, 8, 0\)",)),
    (lambda: F.conv_transpose2d(ones(1, 8, 8, 2), ones(1, 3, 3, 2)), (r"\(1, 8, 8, 2\)", r"\(1, 3, 3, 2\)")),
    (lambda: F.conv_transpose2d(ones(8, 8, 1), ones(1, 3, 3, 2)), (r"\(8, 8, 1\)",)),
    (lambda: F.conv_transpose2d(ones(1, 1, 1, 1), ones(1, 3, 3, 2), padding=2), ("at least 1 x 1", "-1 x -1")),
    (lambda: F.conv_transpose2d(ones(1, 8, 8, 1), ones(1, 3, 3, 2), ones(1)), (r"\(2,\)", r"got \(1,\)")),
    (lambda: F.conv_transpose2d(ones(1, 4, 4, 1), ones(1, 3, 3, 1), stride=2, output_padding=2), (r"got \(2, 2\)",)),
    (lambda: F.conv_transpose2d(ones(1, 4, 4, 1), ones(1, 3, 3, 1), None, 2, 0, (2, 0)), (r"got \(2, 0\)",)),
    (lambda: F.conv_transpose2d(ones(1, 4, 4, 1), ones(1, 3, 3, 1), None, 2, 0, (0, 2)), (r"got \(0, 2\)",)),
    (lambda: F.conv_transpose2d(ones(1, 4, 4, 1), ones(1, 3, 3, 1), output_padding=1), (r"got \(1, 1\)",)),
    (
        lambda: F.conv_transpose2d(ones(1, 4, 4, 1), ones(1, 3, 3, 1), None, 2, "same", 1),
        ("'same'", r"got \(1, 1\)"),
    ),
    (lambda: F.conv_transpose2d(ones(1, 4, 4, 1), ones(1, 3, 3, 1), output_padding=-1), ("got -1",)),
    (lambda: F.conv2d(ones(8, 3, 32, 32), ones(16, 3, 3, 3)), (r"NHWC \(not NCHW\)", "of one C")),
    (lambda: F.conv_transpose2d(ones(8, 3, 32, 32), ones(16, 3, 3, 3)), (r"NPQK \(not NKPQ\)", "of one K")),
    (lambda: F.conv2d_weight_grad(ones(1, 8, 8, 2), ones(1, 8, 8, 1), 3), (r"\(1, 6, 6, 1\)", r"\(1, 8, 8, 1\)")),
    (lambda: F.conv2d_weight_grad(ones(1, 8, 8, 2), ones(2, 6, 6, 1), 3), (r"\(1, 6, 6, 1\)", r"\(2, 6, 6, 1\)")),
    (lambda: F.conv2d_weight_grad(ones(8, 8, 2), ones(1, 8, 8, 1), 3), (r"\(8, 8, 2\)",)),
    (lambda: F.conv2d_weight_grad(ones(1, 8, 8, 2), ones(1, 8, 8, 1), 0), ("kernel_size", "got 0")),
]


@pytest.mark.parametrize(("call", "words"), ERRORS)
def test_wrong_shapes(call: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert_one_line(error, "conv", *words)


@pytest.mark.parametrize("stride", [0, -1, 1.5, "2", None, True, (1, 0), (1, 2, 3), (1.0, 2.0), [], {1: 2}])
def test_wrong_strides(stride: Any) -> None:
    for call in (
        lambda: F.conv2d(ones(1, 8, 8, 1), ones(1, 3, 3, 1), stride=stride),
        lambda: F.conv_transpose2d(ones(1, 8, 8, 1), ones(1, 3, 3, 1), stride=stride),
        lambda: F.conv2d_weight_grad(ones(1, 8, 8, 1), ones(1, 3, 3, 1), 3, stride),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert_one_line(error, "stride", "got ")


@pytest.mark.parametrize(
    "padding",
    [
        -1,
        1.5,
        "SAME",
        "full",
        "",
        None,
        True,
        (1,),
        (1, 2, 3),
        (-1, 0),
        ((1, 2),),
        ((1, 2), (3, -4)),
        ((1, 2), (3,)),
        ((1, 2), (1, 2), (1, 2)),
        ("same", "same"),
        b"same",
        {},
        np.array([1, 1]),
    ],
)
def test_wrong_paddings(padding: Any) -> None:
    for call in (
        lambda: F.conv2d(ones(1, 8, 8, 1), ones(1, 3, 3, 1), padding=padding),
        lambda: F.conv_transpose2d(ones(1, 8, 8, 1), ones(1, 3, 3, 1), padding=padding),
        lambda: F.conv2d_weight_grad(ones(1, 8, 8, 1), ones(1, 8, 8, 1), 3, 1, padding),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert_one_line(error, "padding", "'same', 'valid'", "got ")


def test_numpy_whole_numbers_are_numbers() -> None:
    """Sizes are often computed, and then they are NumPy's."""
    x, w = ones(1, 8, 8, 1), ones(1, 3, 3, 1)
    two = np.int64(2)
    assert F.conv2d(x, w, stride=two, padding=(two, np.int32(1))).shape == (1, 5, 4, 1)


def test_empty_batch() -> None:
    x = mg.tensor(np.ones((0, 8, 8, 3)), requires_grad=True)
    for c in (3, 9):
        x = mg.tensor(np.ones((0, 8, 8, c)), requires_grad=True)
        w = mg.tensor(np.ones((4, 3, 3, c)), requires_grad=True)
        y = F.conv2d(x, w, padding="same")
        assert y.shape == (0, 8, 8, 4)
        y.backward(np.ones(y.shape))
        assert_close(w.grad, np.zeros((4, 3, 3, c)), 0)
        assert x.grad is not None
        assert x.grad.shape == x.shape


# ---- against PyTorch -----------------------------------------------------------------------------------------------


def problems(count: int) -> list[Any]:
    """Random problems: strides 1-3, kernels 1-5, asymmetric paddings, narrow and wide channels, odd and even sizes."""
    rng = np.random.default_rng(20)
    found: list[Any] = []
    while len(found) < count:
        n, h, w, c, k, r, s, t, u = (int(rng.integers(1, m + 1)) for m in (3, 13, 13, 11, 11, 5, 5, 3, 3))
        pads = tuple((int(a), int(b)) for a, b in rng.integers(0, 4, (2, 2)))
        extra = int(rng.integers(0, t)), int(rng.integers(0, u))
        dtype = ("float32", "float64")[len(found) % 2]
        if h + sum(pads[0]) >= r and w + sum(pads[1]) >= s:
            name = f"{n}x{h}x{w}x{c}-{k}x{r}x{s}-s{t}{u}-p{pads[0]}{pads[1]}-o{extra}-{dtype}".replace(" ", "")
            found.append(pytest.param((n, h, w, c, k, r, s), (t, u), pads, extra, dtype, id=name))
    return found


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    torch = pytest.importorskip("torch", reason="PyTorch (the bench extra) is not installed")
    # Without oneDNN, which (in PyTorch 2.13) corrupts the heap in the backward pass of a transposed convolution with a
    # 1 x 1 kernel, stride 2 and output padding.
    torch.backends.mkldnn.enabled = False
    yield torch
    torch.backends.mkldnn.enabled = True


def both(torch: Any, *arrays: np.ndarray) -> tuple[list[mg.Tensor], list[Any]]:
    """The same leaves in both frameworks; PyTorch's in our layout, to be permuted by its own differentiable ops."""
    ours = [mg.tensor(a, requires_grad=True) for a in arrays]
    return ours, [torch.tensor(a, requires_grad=True) for a in arrays]


def nchw(x: Any) -> Any:
    return x.permute(0, 3, 1, 2)


def nhwc(x: Any) -> Any:
    return x.permute(0, 2, 3, 1)


def compare(ours: Any, theirs: Any, our_inputs: Any, their_inputs: Any, torch: Any, rng: Any, dtype: str) -> None:
    assert_close(ours, theirs, rounding(dtype))
    assert ours.dtype == np.dtype(dtype)
    gy = rng.standard_normal(ours.shape).astype(dtype)
    ours.backward(gy)
    theirs.backward(torch.tensor(gy))
    for x, t in zip(our_inputs, their_inputs, strict=True):
        assert x.grad.dtype == np.dtype(dtype)
        assert_close(x.grad, t.grad, rounding(dtype))


@pytest.mark.parametrize(("sizes", "stride", "pads", "extra", "dtype"), problems(60))
class TestAgainstPyTorch:
    def test_conv2d(self, sizes: Any, stride: Any, pads: Any, extra: Any, dtype: str, torch: Any) -> None:
        n, h, w, c, k, r, s = sizes
        rng = np.random.default_rng(1)
        arrays = [rng.standard_normal(shape).astype(dtype) for shape in ((n, h, w, c), (k, r, s, c), (k,))]
        ours, theirs = both(torch, *arrays)
        (top, bottom), (left, right) = pads
        padded = torch.nn.functional.pad(nchw(theirs[0]), (left, right, top, bottom))
        expected = nhwc(torch.nn.functional.conv2d(padded, nchw(theirs[1]), theirs[2], stride))
        compare(F.conv2d(*ours, stride, pads), expected, ours, theirs, torch, rng, dtype)

    def test_conv_transpose2d(self, sizes: Any, stride: Any, pads: Any, extra: Any, dtype: str, torch: Any) -> None:
        n, p, q, k, c, r, s = sizes
        (top, bottom), (left, right) = pads
        height, width = (p - 1) * stride[0] + r + extra[0], (q - 1) * stride[1] + s + extra[1]
        if height - top - bottom < 1 or width - left - right < 1:
            top = bottom = left = right = 0
        rng = np.random.default_rng(2)
        arrays = [rng.standard_normal(shape).astype(dtype) for shape in ((n, p, q, k), (k, r, s, c), (c,))]
        ours, theirs = both(torch, *arrays)
        # Without padding, then cropped: PyTorch knows symmetric paddings only.
        full = torch.nn.functional.conv_transpose2d(nchw(theirs[0]), nchw(theirs[1]), theirs[2], stride, 0, extra)
        expected = nhwc(full[:, :, top : height - bottom, left : width - right])
        y = F.conv_transpose2d(*ours, stride, ((top, bottom), (left, right)), extra)
        compare(y, expected, ours, theirs, torch, rng, dtype)

    def test_conv2d_weight_grad(self, sizes: Any, stride: Any, pads: Any, extra: Any, dtype: str, torch: Any) -> None:
        n, h, w, c, k, r, s = sizes
        (top, bottom), (left, right) = pads
        p, q = (h + top + bottom - r) // stride[0] + 1, (w + left + right - s) // stride[1] + 1
        rng = np.random.default_rng(3)
        arrays = [rng.standard_normal(shape).astype(dtype) for shape in ((n, h, w, c), (n, p, q, k))]
        ours, theirs = both(torch, *arrays)
        weight = torch.zeros((k, c, r, s), dtype=theirs[0].dtype, requires_grad=True)
        padded = torch.nn.functional.pad(nchw(theirs[0]), (left, right, top, bottom))
        y = torch.nn.functional.conv2d(padded, weight, None, stride)
        (gw,) = torch.autograd.grad(y, weight, nchw(theirs[1]), create_graph=True)
        compare(F.conv2d_weight_grad(*ours, (r, s), stride, pads), nhwc(gw), ours, theirs, torch, rng, dtype)


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(8, 5, 2), (8, 4, 2), (7, 5, 2), (9, 3, 3), (8, 5, 1), (6, 2, 1)]
)
def test_same_padding_values(size: int, kernel: int, stride: int, torch: Any) -> None:
    """SAME against PyTorch with the padding of systems.md's formula written out."""
    rng = np.random.default_rng(4)
    x, w = rng.standard_normal((2, size, size, 3)), rng.standard_normal((9, kernel, kernel, 3))
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + kernel - size, 0)
    before, after = total // 2, total - total // 2
    padded = torch.nn.functional.pad(nchw(torch.tensor(x)), (before, after, before, after))
    expected = nhwc(torch.nn.functional.conv2d(padded, nchw(torch.tensor(w)), None, stride))
    assert_close(F.conv2d(mg.tensor(x), mg.tensor(w), None, stride, "same"), expected, rounding("float64"))


# ---- adjointness ---------------------------------------------------------------------------------------------------

GEOMETRIES = [settings["geometry"] for _, settings in Conv2d.samples(np.random.default_rng(0))] + [
    geometry.convolution("c", (2, 11, 8, 9), (5, 2, 3, 9), (3, 2), ((1, 0), (0, 2))),
    geometry.convolution("c", (1, 5, 5, 8), (3, 1, 1, 8), 3, 0),  # most input pixels are read by nothing
    geometry.convolution("c", (1, 2, 2, 8), (3, 5, 5, 8), 3, 4),  # more padding than input
    # Few output channels, and with more padding than filter; few input channels, and with steps over pixels.
    geometry.convolution("c", (2, 9, 7, 9), (3, 4, 5, 9), 1, ((1, 2), (0, 4))),
    geometry.convolution("c", (1, 2, 3, 8), (2, 3, 2, 8), 1, 5),
    geometry.convolution("c", (2, 11, 8, 3), (5, 2, 3, 3), (3, 2), ((1, 0), (0, 2))),
    geometry.convolution("c", (1, 7, 9, 2), (9, 1, 2, 2), (2, 4), 0),
]


@pytest.mark.parametrize("g", GEOMETRIES)
def test_the_three_primitives_are_adjoint(g: Geometry) -> None:
    """<conv(x, w), y> = <x, conv_transpose(y, w)> = <w, weight_grad(x, y)>."""
    rng = np.random.default_rng(5)
    x, w, y = (mg.tensor(rng.standard_normal(shape)) for shape in (g.x_shape, g.w_shape, g.y_shape))
    products = (
        float((Conv2d(g)(x, w) * y).sum()),
        float((x * Conv2dInputGrad(g)(y, w)).sum()),
        float((w * Conv2dWeightGrad(g)(x, y)).sum()),
    )
    # Sums of up to 6000 products of three numbers about 1.
    assert_close(products, [products[0]] * 3, 100 * rounding("float64"))
    assert products[0] != 0


# ---- how they are computed -----------------------------------------------------------------------------------------


def all_three(g: Geometry, dtype: str = "float64") -> list[np.ndarray]:
    rng = np.random.default_rng(6)
    x, w, y = (rng.standard_normal(shape).astype(dtype) for shape in (g.x_shape, g.w_shape, g.y_shape))
    return [conv2d_cpu.forward(x, w, g), conv2d_cpu.input_grad(y, w, g), conv2d_cpu.weight_grad(x, y, g)]


@pytest.mark.parametrize("sums", [1, 3, 100])
@pytest.mark.parametrize("rows", [1, 5, 7])
@pytest.mark.parametrize("g", GEOMETRIES)
def test_blocks(g: Geometry, rows: int, sums: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one row and of a few, which divide nothing, against blocks of as many as there are."""
    expected = all_three(g)
    monkeypatch.setattr(patches, "BLOCK_BYTES", 1)
    monkeypatch.setattr(patches, "BLOCK_ROWS", rows)
    monkeypatch.setattr(patches, "BLOCKS", 10**9)
    monkeypatch.setattr(patches, "BLOCK_PIXELS", rows)
    monkeypatch.setattr(conv2d_im2col, "PARTIAL_SUMS", sums)
    block, _ = conv2d_im2col._input_patches(np.zeros(g.x_shape), g).make(0)
    assert block.stop <= max(rows, g.q)
    for a, b in zip(all_three(g), expected, strict=True):
        assert_close(a, b, rounding("float64"))


@pytest.mark.parametrize("g", GEOMETRIES)
def test_every_way_gives_the_same(g: Geometry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those for few channels serve many, and the other way round: which is taken is a matter of speed alone."""
    rng = np.random.default_rng(7)
    x, w, y = (rng.standard_normal(shape) for shape in (g.x_shape, g.w_shape, g.y_shape))
    for narrow in (0, g.c, 10**9):  # with g.c the convolution is turned, where that can be
        for module in (conv2d_im2col, conv2d_turned, patches):
            monkeypatch.setattr(module, "NARROW", narrow)
        assert_close(conv2d_cpu.forward(x, w, g), Conv2d.reference(x, w, geometry=g), rounding("float64"))
        assert_close(conv2d_cpu.input_grad(y, w, g), Conv2dInputGrad.reference(y, w, geometry=g), rounding("float64"))
        assert_close(conv2d_cpu.weight_grad(x, y, g), Conv2dWeightGrad.reference(x, y, geometry=g), rounding("float64"))


LARGE = [
    geometry.convolution("c", (3, 33, 31, 3), (16, 5, 5, 3), 2, "same"),
    geometry.convolution("c", (3, 33, 31, 16), (9, 4, 4, 16), 2, "same"),
]


def everything(dtype: str) -> list[np.ndarray]:
    """Results of all compiled loops, at sizes that every number of threads cuts differently."""
    rng = np.random.default_rng(8)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    results = [a for g in LARGE for a in all_three(g, dtype)]
    x = mg.tensor(draw(5, 67, 53, 11), requires_grad=True)
    gamma, beta = (mg.tensor(draw(11), requires_grad=True) for _ in range(2))
    for y in (
        F.batch_norm(x, gamma, beta),
        F.leaky_relu(x),
        F.elu(x),
        F.max_pool2d(x, 3, 2, 1),
        F.upsample_nearest2d(x),
    ):
        found = mg.grad(y, [x, gamma, beta], draw(*y.shape), allow_unused=True)
        results += [y.numpy(), *(g.numpy() for g in found if g is not None)]
    w = mg.tensor(draw(40_001), requires_grad=True)
    w.grad = mg.tensor(draw(40_001))
    adam = mg.optim.Adam([w], 0.1)
    adam.step()
    adam.step()
    return [*results, w.numpy()]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_do_not_depend_on_the_number_of_threads(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGAN_NUM_THREADS", "1")
    assert cpu.thread_count() == 1
    expected = everything(dtype)
    for threads in ("2", "3", "7"):
        monkeypatch.setenv("MINIGAN_NUM_THREADS", threads)
        cpu._team_of.cache_clear()
        for a, b in zip(everything(dtype), expected, strict=True):
            assert_same(a, b)
    cpu._team_of.cache_clear()


def test_every_index_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("MINIGAN_NUM_THREADS", threads)
        for count, grain in ((0, 1), (1, 1), (4, 1), (7, 1), (33, 4), (33, 100)):
            seen = np.zeros(count, int)

            def kernel(start: int, stop: int, seen: np.ndarray) -> None:
                assert stop - start >= min(grain, len(seen))  # noqa: B023 - called at once
                seen[start:stop] += 1

            cpu.parallel(kernel, count, seen, grain=grain)
            assert_same(seen, np.ones(count, int))


def test_an_error_in_a_thread_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGAN_NUM_THREADS", "3")

    def kernel(start: int, stop: int) -> None:
        if start > 0:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cpu.parallel(kernel, 9)


@pytest.mark.parametrize("wrong", ["0", "-1", "two", "1.5", "1025", "100000"])
def test_wrong_number_of_threads(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGAN_NUM_THREADS", wrong)
    with pytest.raises(ValueError, match="MINIGAN_NUM_THREADS") as error:
        cpu.thread_count()
    assert_one_line(error, f"got '{wrong}'")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_weight_gradient_by_tap_is_that_by_block(dtype: type) -> None:
    rng = np.random.default_rng(0)
    for shape, weight, stride, padding in (
        ((3, 7, 5, 130), (19, 5, 3, 130), (2, 1), "same"),
        ((2, 4, 4, 128), (33, 4, 4, 128), (1, 1), "valid"),
        ((1, 1, 9, 129), (1, 3, 3, 129), (3, 2), 2),
    ):
        g = geometry.convolution("test", shape, weight, stride, padding)
        x, gy = rng.standard_normal(g.x_shape).astype(dtype), rng.standard_normal(g.y_shape).astype(dtype)
        by_tap, by_block = (
            f(x, gy, g) for f in (conv2d_im2col._weight_grad_by_tap, conv2d_im2col._weight_grad_by_block)
        )
        np.testing.assert_allclose(by_tap, by_block, rtol=0, atol=200 * np.finfo(dtype).eps * np.abs(by_block).max())
        np.testing.assert_array_equal(conv2d_cpu.weight_grad(x, gy, g), by_tap)  # the choice for so many channels
