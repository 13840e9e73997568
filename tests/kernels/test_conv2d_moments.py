"""What convolutions leave for the batch norm behind them: moments of their outputs' parts, and who may use them.

What is allowed, from the arithmetic, with u = 2^-24. A part has at most 64 rows, a lane 8 of them. A difference d from
the first value rounds by u of the part's range, the sum of 8 and then of 8 lanes ten times by u of its partial sum, the
mean twice: 13 u of the range, of which 16 u are allowed. The sum of squares S: with D the deviations, each square is
off by 2 |D| u (range + |D|); the sum of |D| is at most sqrt(64 S), the range sqrt(2 S), so that makes 25 u S; squaring
and adding up, 12 u S. An error of the mean counts only twice over, as the deviations add up to 0. 64 u S are allowed.
"""

from typing import Any

import numpy as np
import pytest
import test_conv2d_ladder as ladder
from leaf_checks import assert_within, check_counters, eps, run, wide

import minigan as mg
import minigan.functional as F
from minigan import nn
from minigan.half import is_half
from minigan.ops import batch_norm_cuda, conv2d_cuda, conv2d_launch, conv2d_tune
from minigan.ops.batch_norm import placed_batch_norm
from minigan.ops.conv2d import placed_conv2d
from minigan.ops.conv2d_ladder import RUNGS, parts_of
from minigan.ops.conv2d_tune import Choice
from minigan.ops.geometry import Geometry
from minigan.ops.moments import Moments, Parts
from minigan.ops.place import Place

problem = ladder.problem
SIZES = [
    problem((1, 1, 1, 1), (1, 1, 1, 1), 1, 0),
    problem((2, 19, 33, 3), (5, 5, 5, 3), 2, "same"),  # sides that no stride divides: the input gradient leaves nothing
    problem((1, 21, 33, 4), (12, 3, 3, 4), 1, "same"),  # images one after the other
    problem((2, 20, 36, 4), (68, 3, 3, 4), 2, "same"),  # small ones, together; of the input gradient in classes
    problem((1, 34, 38, 20), (8, 4, 4, 20), 2, "same"),  # classes of larger ones, the last part of each shorter
    problem((70, 3, 3, 12), (132, 3, 3, 12), 1, "same"),  # whole tiles read padding with some taps
    problem((3, 9, 6, 12), (4, 2, 1, 12), (3, 2), (1, 0)),  # classes without taps: their outputs are the bias
    problem((3, 8, 10, 13), (21, 5, 4, 13), (2, 1), "same"),  # channels that 16-bit operands pad
]
TILES = [(rung, tile) for rung, tile in ladder.EVERY_TILE if rung > 3 and RUNGS[rung].tiles[tile].part_rows]
tiles = pytest.mark.parametrize(("rung", "tile"), TILES, ids=str)
passes = pytest.mark.parametrize("name", ["forward", "input_grad"])


def parts_of_output(name: str, g: Geometry, y: np.ndarray, part_rows: int) -> list[np.ndarray]:
    """The rows (rows, channels) of each part, found without the kernels' arithmetic."""
    strides = (g.stride_h, g.stride_w) if name == "input_grad" else (1, 1)
    found = []
    for top, left in np.ndindex(*strides):
        pixels = y[:, top :: strides[0], left :: strides[1]]
        small = pixels.shape[1] * pixels.shape[2] <= 256
        rows = (pixels.transpose(1, 2, 0, 3) if small else pixels).reshape(-1, y.shape[-1])
        found += [rows[i : i + part_rows].astype(np.float64) for i in range(0, len(rows), part_rows)]
    return found


def observed(name: str, g: Geometry, arrays: list[np.ndarray], groups: int = 1, **settings: Any) -> tuple[Any, ...]:
    """The outputs and what is left of them: parts, means, squares; None where nothing is."""
    moments = Moments(groups)
    y = ladder.run(ladder.PASSES[name], g, arrays, moments=moments, **settings)
    return y, *(moments.left[1] if moments.left else (None, None, None))


def check_moments(name: str, g: Geometry, rung: int, tile: int, mean: float = 0.0, half: bool = False) -> None:
    arrays = ladder.random_inputs(ladder.PASSES[name], g)
    if mean:
        arrays[0] *= np.float32(1e-2)
        arrays[2][...] = mean
    forced = {"rung": rung, "tile": tile, "half": half}
    parts = parts_of(RUNGS[rung].tiles[tile], g, name, 1)
    assert parts is not None

    def work() -> tuple[np.ndarray, ...]:
        y, left, means, squares = observed(name, g, arrays, **forced)
        assert left == parts
        return y, means, squares

    y, means, squares = run(work)
    assert (means.dtype, squares.dtype) == (np.float64, np.float32)
    # The outputs are those of the kernel without moments.
    np.testing.assert_array_equal(y, run(lambda: ladder.run(ladder.PASSES[name], g, arrays, **forced)))
    assert is_half(y) == half
    rows = parts_of_output(name, g, wide(y) if half else y, parts.part_rows)
    assert len(rows) == parts.count == len(means)
    expected = np.stack([r.mean(0) for r in rows])
    expected += np.stack([(r - e).mean(0) for r, e in zip(rows, expected, strict=True)])
    spread = np.stack([np.ptp(r, axis=0) for r in rows])
    assert_within(means, expected, 8 * eps("float32") * spread + 2 * eps("float64") * np.abs(expected))
    exact = np.stack([((r - e) ** 2).sum(0) for r, e in zip(rows, expected, strict=True)])
    assert_within(squares, exact, 32 * eps("float32") * exact)


def suiting(name: str, rung: int, tile: int) -> list[Geometry]:
    """Of SIZES, those whose outputs have parts, for which this tile has loads."""
    spec = RUNGS[rung].tiles[tile]
    return [g for g in SIZES if parts_of(spec, g, name, 1) and ladder.fits(name, g, rung, tile)]


@passes
@tiles
def test_moments_of_every_part(rung, tile, name):
    for g in suiting(name, rung, tile):
        check_moments(name, g, rung, tile)


@passes
@tiles
def test_moments_far_from_zero(rung, tile, name):
    """A mean of 1000 and a deviation of some hundredths: as exact as without it."""
    for g in suiting(name, rung, tile):
        check_moments(name, g, rung, tile, 1000.0)


@passes
@pytest.mark.parametrize(("rung", "tile"), [(rung, tile) for rung, tile in TILES if RUNGS[rung].half], ids=str)
def test_moments_of_what_is_kept_in_16_bits(rung, tile, name):
    """Of the rounded values, as batch norm reads them: unrounded ones are off by more than is allowed."""
    for g in (problem((2, 7, 9, 16), (24, 3, 3, 16), 1, "same"), problem((1, 34, 38, 24), (72, 4, 4, 24), 2, "same")):
        for mean in (0.0, 10.0):
            check_moments(name, g, rung, tile, mean, half=True)


def test_there_is_a_size_for_every_tile():
    for rung, tile in TILES:
        assert len(suiting("forward", rung, tile)) >= 3
        assert len(suiting("input_grad", rung, tile)) >= 3


def check_nan_stays(name: str, g: Geometry, rung: int, tile: int) -> None:
    """A NaN among the inputs and an infinite bias: in the parts and channels that have them."""
    arrays = ladder.random_inputs(ladder.PASSES[name], g)
    arrays[0][0, 0, 0, 0] = np.nan
    arrays[2][0] = np.inf

    def work() -> tuple[np.ndarray, ...]:
        y, _, means, squares = observed(name, g, arrays, rung=rung, tile=tile)
        return y, means, squares

    y, means, squares = run(work)
    rows = parts_of_output(name, g, y, RUNGS[rung].tiles[tile].part_rows)
    finite = np.stack([np.isfinite(r).all(0) for r in rows])
    assert not finite[:, 0].any()
    np.testing.assert_array_equal(np.isfinite(means), finite)
    np.testing.assert_array_equal(np.isfinite(squares), finite)


@passes
@tiles
def test_nan_and_infinity_stay_in_their_part_and_channel(rung, tile, name):
    for g in suiting(name, rung, tile):
        check_nan_stays(name, g, rung, tile)


# ---- together with batch norm ----------------------------------------------------------------------------------------


@pytest.fixture
def kernels(monkeypatch):
    """The kernels that are launched."""
    names = []
    for module in (conv2d_launch, batch_norm_cuda):

        def noted(source, kernel, *given, launch=module.launch, **options):
            names.append(kernel)
            launch(source, kernel, *given, **options)

        monkeypatch.setattr(module, "launch", noted)
    return names


@pytest.fixture(autouse=True)
def tf32(monkeypatch):
    monkeypatch.setattr("minigan.backend._precision", "tf32")


def layers(shape, filters, transposed=False, stride=2):
    mg.manual_seed(1)
    make = nn.ConvTranspose2d if transposed else nn.Conv2d
    net = nn.Sequential(make(shape[-1], filters, 4, stride, "same"), nn.BatchNorm2d(filters, 0.9), nn.LeakyReLU(0.2))
    return net.to("emulated")


def batch(shape, seed=0, scale=1.0):
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    return mg.tensor(values.astype(np.float32), requires_grad=True, device="emulated")


def separately(net, x, groups=1):
    """The same layers one by one, so that batch norm reads its input."""
    norm = net[1]
    running = [mg.tensor(t.numpy().copy(), device="emulated") for t in (norm.running_mean, norm.running_var)]
    settings = {"momentum": norm.momentum, "epsilon": norm.epsilon, "groups": groups}
    return placed_batch_norm(Place(0.2), net[0](x), norm.gamma, norm.beta, *running, **settings), running


def check_equal(net, x, y, other, running):
    """Two ways to one batch norm, whose statistics differ in their last bits; and their gradients."""
    close = 64 * eps("float32")
    assert_within(y.numpy(), other.numpy().astype(np.float64), close * np.abs(other.numpy()).max())
    for t, value in zip((net[1].running_mean, net[1].running_var), running, strict=True):
        assert_within(t.numpy(), value.numpy().astype(np.float64), close * np.abs(value.numpy()).max())
    wanted = [x, net[0].weight, net[1].gamma, net[1].beta]  # a bias before batch norm has none but roundings
    gy = mg.tensor(np.random.default_rng(5).standard_normal(y.shape).astype(np.float32), device="emulated")
    for one, two in zip(mg.grad(y, wanted, gy), mg.grad(other, wanted, gy), strict=True):
        # TF32 rounds what differs in its last bits to neighbours, some of which are 2^-10 apart.
        assert_within(one.numpy(), two.numpy().astype(np.float64), 2.0**-9 * max(1e-2, np.abs(two.numpy()).max()))


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
@pytest.mark.parametrize("transposed", [False, True])
def test_batch_norm_does_not_read_its_input(transposed, precision, kernels, monkeypatch):
    monkeypatch.setattr("minigan.backend._precision", precision)
    shape = (3, 8, 10, 8)
    net, x = layers(shape, 20, transposed), batch(shape)
    y = net(x)
    name = "conv2d_input_grad" if transposed else "conv2d_forward"
    assert [k for k in kernels if k != "round_operands"] == [f"{name}_moments", "combine_moments", "normalize"]
    kernels.clear()
    net = layers(shape, 20, transposed)
    other, running = separately(net, x)
    assert [k for k in kernels if k != "round_operands"] == [name, "moments", "normalize"]
    check_equal(net, x, net(x), other, running)
    np.testing.assert_array_equal(net(x).numpy(), y.numpy())
    check_counters()


# Images in a batch of two; what they are to a part of 32 rows.
@pytest.mark.parametrize(
    ("shape", "stride", "reads"),
    [
        ((32, 4, 4, 4), 2, "combine_moments"),  # small images, as many in each group as a part has
        ((3, 4, 4, 4), 2, "moments"),  # parts with images of both
        ((1, 24, 20, 4), 1, "combine_moments"),  # 480 rows are 15 parts
        ((1, 21, 15, 4), 1, "moments"),  # 315 are not
    ],
)
def test_groups(shape, stride, reads, kernels):
    net = layers(shape, 8, stride=stride)
    batches = batch(shape, 1), batch(shape, 2, scale=5.0)
    other, running = separately(net, F.concatenate(batches), groups=2)
    kernels.clear()
    y = F.concatenate(nn.together(net, *batches))
    assert reads in kernels
    close = 64 * eps("float32") * np.abs(other.numpy()).max()
    assert_within(y.numpy(), other.numpy().astype(np.float64), close)
    for t, value in zip((net[1].running_mean, net[1].running_var), running, strict=True):
        assert_within(t.numpy(), value.numpy().astype(np.float64), 64 * eps("float32") * np.abs(value.numpy()).max())


def test_groups_of_classes(kernels):
    """A transposed convolution's parts: groups within each class."""
    shape = (64, 3, 2, 4)
    net = layers(shape, 8, transposed=True)
    batches = batch(shape, 1), batch(shape, 2, scale=5.0)
    other, _ = separately(net, F.concatenate(batches), groups=2)
    kernels.clear()
    y = F.concatenate(nn.together(net, *batches))
    assert "combine_moments" in kernels
    assert_within(y.numpy(), other.numpy().astype(np.float64), 64 * eps("float32") * np.abs(other.numpy()).max())


def test_gradients_of_gradients():
    shape = (2, 6, 6, 4)
    net, x = layers(shape, 8), batch(shape)
    wanted = [net[0].weight, net[1].gamma, net[1].beta]
    other, _ = separately(net, x)
    found = []
    for y in (net(x), other):
        (gx,) = mg.grad((y * y * y).sum(), [x], create_graph=True)
        found.append([g.numpy() for g in (gx, *mg.grad((gx * gx).sum(), wanted))])
    for one, two in zip(*found, strict=True):
        assert_within(one, two.astype(np.float64), 2.0**-7 * max(1e-2, np.abs(two).max()))


def reading(net, x, kernels):
    kernels.clear()
    net(x)
    return [k for k in kernels if "moments" in k]


def test_who_gets_none(kernels, monkeypatch):
    """Evaluation, other precisions, layers that are not beside each other."""
    shape = (3, 8, 8, 4)
    net, x = layers(shape, 8), batch(shape)
    assert reading(net, x, kernels) == ["conv2d_forward_moments", "combine_moments"]
    assert reading(net.eval(), x, kernels) == []
    net.train()
    conv, norm = net[0], net[1]
    assert reading(nn.Sequential(conv, nn.Sequential(norm)), x, kernels) == ["moments"]
    assert reading(nn.Sequential(conv, norm, norm), x, kernels) == [
        "conv2d_forward_moments",
        "combine_moments",
        "moments",
    ]
    monkeypatch.setattr("minigan.backend._precision", "float32")
    assert reading(net, x, kernels) == ["moments"]
    with mg.no_grad():
        monkeypatch.setattr("minigan.backend._precision", "tf32")
        assert reading(net, x, kernels) == ["conv2d_forward_moments", "combine_moments"]


def test_a_leaky_relu_between(kernels):
    """It is computed with the convolution, whose moments are those of what is behind it."""
    shape = (3, 8, 8, 4)
    net, x = layers(shape, 8), batch(shape)
    conv, norm = net[0], net[1]
    between = nn.Sequential(conv, nn.LeakyReLU(), norm)
    assert reading(between, x, kernels) == ["conv2d_forward_moments", "combine_moments"]
    other = norm(F.leaky_relu(conv(x))).numpy().astype(np.float64)
    assert_within(between(x).numpy(), other, 64 * eps("float32") * np.abs(other).max())


def test_an_elu_between(kernels):
    """It is computed with the convolution, in a build without moments; so batch norm reads what is behind it."""
    shape = (3, 8, 8, 4)
    net, x = layers(shape, 8), batch(shape)
    conv, norm = net[0], net[1]
    alone, other = reading(norm, F.elu(conv(x), 0.7), kernels), norm(F.elu(conv(x), 0.7)).numpy()
    between = nn.Sequential(conv, nn.ELU(0.7), norm)
    assert reading(between, x, kernels) == alone == ["moments"]
    np.testing.assert_array_equal(between(x).numpy(), other)


def test_synchronised_statistics(kernels):
    """Of a single rank, whose moments are those of all."""
    shape = (3, 8, 8, 4)
    net, x = layers(shape, 8), batch(shape)
    other, running = separately(net, x)
    net[1].synchronised = True
    check_equal(net, x, net(x), other, running)
    assert reading(net, x, kernels) == ["conv2d_forward_moments", "combine_moments"]


def test_a_subclass_computes_by_itself(kernels):
    class Doubled(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2.0

    net = nn.Sequential(Doubled(4, 8, 3), nn.BatchNorm2d(8)).to("emulated")
    assert reading(net, batch((2, 6, 6, 4)), kernels) == ["moments"]


def test_what_is_not_the_tensor_as_it_was_computed():
    """Changed in place, another one, in other groups, or once more: nothing is taken."""
    x, weight = batch((2, 6, 6, 4)), batch((8, 3, 3, 4))

    def made(groups=1):
        moments = Moments(groups)
        return moments, placed_conv2d(Place(moments=moments), x, weight, None)

    moments, y = made()
    known = moments.take(y, 1)
    assert known is not None
    assert moments.take(y, 1) is None
    moments, y = made()
    assert moments.take(mg.tensor(y.numpy(), device="emulated"), 1) is None
    moments, y = made()
    assert moments.take(y, 2) is None
    moments, y = made()
    y.data[...] = 1
    y.mark_changed()
    assert moments.take(y, 1) is None
    gamma, beta = batch((8,)), batch((8,))
    other = placed_batch_norm(Place(moments=moments), y, gamma, beta)
    np.testing.assert_array_equal(other.numpy(), np.broadcast_to(beta.numpy(), y.shape))


def test_the_fastest_way_leaves_them_too(monkeypatch):
    g = SIZES[3]
    monkeypatch.setattr(conv2d_cuda, "_tunes", lambda device, x, g, rung, tile: rung is None)
    for way, part_rows in ((Choice(6, 1), 64), (Choice(7, 0), 32), (Choice(5, 0), None)):
        monkeypatch.setattr(conv2d_tune, "choose", lambda *_, way=way: way)
        for name in ("forward", "input_grad"):
            arrays = ladder.random_inputs(ladder.PASSES[name], g)
            _, parts, *_ = observed(name, g, arrays)
            assert (parts and parts.part_rows) == part_rows


def test_an_empty_batch_leaves_nothing():
    g = problem((0, 6, 6, 4), (8, 3, 3, 4), 1, "same")
    for name in ("forward", "input_grad"):
        assert observed(name, g, ladder.random_inputs(ladder.PASSES[name], g))[1] is None


def test_parts_of_sizes():
    small, large = RUNGS[6].tiles
    g = problem((128, 16, 16, 8), (8, 5, 5, 8), 2, "same")  # y: 128 x 8 x 8
    assert parts_of(small, g, "forward", 1) == Parts(32, 8192, 256, 1, 1, 256)
    assert parts_of(large, g, "forward", 2) == Parts(64, 4096, 64, 1, 2, 1)
    assert parts_of(large, g, "forward", 4) is None  # 32 images a group
    assert parts_of(small, g, "forward", 3) is None
    assert parts_of(small, g, "input_grad", 2) == Parts(32, 4096, 128, 4, 2, 2)
    wide = problem((4, 64, 64, 8), (8, 5, 5, 8), 2, "same")  # 1024 pixels an image
    assert parts_of(large, wide, "forward", 2) == Parts(64, 2048, 32, 1, 2, 32)
    assert parts_of(RUNGS[5].tiles[0], wide, "forward", 1) is None
    assert parts_of(small, problem((4, 9, 8, 8), (8, 5, 5, 8), 2, "same"), "input_grad", 1) is None
