"""What the tests run on each of some ranks: `mpiexec -n 2 python rank_programs.py NAME ARGUMENTS`."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from example_modules import EXAMPLES, load_example

import minigan as mg
import minigan.functional as F
from minigan import distributed, models, nn
from minigan.data import Batches
from minigan.tensor import Op, Tensor, registry
from minigan.training import System
from minigan.training.parallel import average_buffers, expect_same, spread

SIZE, WIDTH, Z, BATCH = (16, 16), 4, 10, 64


def build(system: str, batch_size: int = BATCH, seed: int = 0) -> System:
    """A tiny one, of the published settings."""
    module = load_example(system)
    settings = dataclasses.replace(
        module.PRESETS["paper"], image_size=SIZE, base_channels=WIDTH, batch_size=batch_size, z_size=Z
    )
    mg.manual_seed(seed)
    return getattr(module, system.capitalize())(settings, "cpu")


def compute_in(dtype: str) -> None:
    """From now on networks and tensors are of this dtype; what is drawn is float32's numbers in any case."""
    make, tensor, uniform, normal = ORIGINALS

    def networks(*args: Any, **keywords: Any) -> Any:
        made = make(*args, **keywords)
        for network in made:
            for _, t in network.named_tensors():
                t._data = t.data.astype(dtype)
                t.dtype = t.data.dtype
        return made

    def converted(draw: Any) -> Any:
        return lambda *args, **keywords: tensor(draw(*args, **keywords).numpy(), device="cpu", dtype=dtype)

    models.build = networks
    mg.tensor = lambda data, device: tensor(data, device=device, dtype=dtype)
    mg.random.uniform, mg.random.normal = converted(uniform), converted(normal)


ORIGINALS: Any = models.build, mg.tensor, mg.random.uniform, mg.random.normal


def steps(system: System, dtype: str, count: int, batch_size: int, synchronised: bool) -> Iterator[dict[str, float]]:
    """What the loop does in so many steps; the losses of each, as means over the ranks."""
    world = distributed.world()
    rows = world.share(batch_size)
    images = np.random.default_rng(1).integers(0, 256, (100, *SIZE, 3), np.uint8)
    black, white = system.generator.pixels
    batches = Batches(images, batch_size, 0, low=black, high=white, share=rows)
    if world.comm is not None:
        spread(system, world, synchronised)
    for _ in range(count):
        with mg.random.share_of_batch(rows, batch_size):
            results = system.step(Tensor(next(batches).astype(dtype)))
        average_buffers(system, world)
        yield world.means(results)


def equal(out: str, *dtypes: str) -> None:
    """Ten steps of all systems, in these dtypes, with synchronised statistics: losses and weights into a file."""
    found = {}
    for dtype in dtypes:
        compute_in(dtype)
        for name in EXAMPLES:
            system = build(name)
            for i, losses in enumerate(steps(system, dtype, 10, BATCH, synchronised=True)):
                found |= {f"{name}/{dtype}/loss/{key}/{i}": np.array(value) for key, value in losses.items()}
            found |= {f"{name}/{dtype}/weights/{key}": value for key, value in system.state_dict().items()}
    found |= {f"penalty/{i}": value for i, value in enumerate(penalty())}
    if distributed.world().is_first:
        np.savez(out, **found)


def penalty() -> list[np.ndarray]:
    """The parameters' gradients of a gradient penalty through synchronised batch norm: a second derivative."""
    compute_in("float64")
    world = distributed.world()
    rows = world.share(BATCH)
    system = build("cats")
    spread(system, world, synchronised=True)
    x = np.random.default_rng(2).standard_normal((BATCH, *SIZE, 3))[rows]
    images = Tensor(x, requires_grad=True)
    (slope,) = mg.grad(system.discriminator(images).sum(), images, create_graph=True)
    assert slope is not None
    (slope * slope).sum((1, 2, 3)).mean().backward()
    return [p.grad.numpy() for p in system.discriminator.parameters() if p.grad is not None]


def batch_norm(device: str) -> None:
    """Synchronised, on uneven shares of 7 images: values, gradients and running statistics are those of the whole.

    So are they where two batches of 7 images, of which each rank has its shares, go through it together.
    """
    world, rng = distributed.world(), np.random.default_rng(0)
    rows = world.share(7)
    x, cotangent = 3 + rng.standard_normal((2, 7, 3, 5, 19)), rng.standard_normal((2, 7, 3, 5, 19))
    x[1] = 2 * x[1] - 8
    gamma, beta = rng.uniform(0.5, 2, 19), rng.standard_normal(19)

    def run(part: slice, groups: int, synchronised: bool) -> list[np.ndarray]:
        images, weights = (a[:groups, part].reshape(-1, 3, 5, 19) for a in (x, cotangent))
        tensors = [mg.tensor(a, requires_grad=True, device=device) for a in (images, gamma, beta)]
        running = [mg.tensor(a, device=device) for a in (np.zeros(19), np.ones(19))]
        y = F.batch_norm(*tensors, *running, momentum=0.5, synchronised=synchronised, groups=groups)
        (y * mg.tensor(weights, device=device)).mean().backward()
        gradients = [t.grad.numpy() for t in tensors if t.grad is not None]
        found = [y.numpy(), *gradients, *(t.numpy() for t in running)]
        return [a.reshape(groups, -1, 3, 5, 19) if a.ndim == 4 else a for a in found]

    for groups in (1, 2):
        y, gx, ggamma, gbeta, *running = run(rows, groups, True)
        expected = run(slice(0, 7), groups, False)
        found = [y, gx * world.weight, world.mean(ggamma), world.mean(gbeta), *running]
        for got, wanted in zip(found, [expected[0][:, rows], expected[1][:, rows], *expected[2:]], strict=True):
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-13 * np.abs(wanted).max())
    if world.is_first:
        print("right", flush=True)


def same(count: str) -> None:
    """So many steps of all systems, each rank with its own batch statistics; then all ranks have to be the same.

    They begin with different weights: rank 0's are those of all.
    """
    for name in EXAMPLES:
        system = build(name, 8, seed=distributed.world().rank)
        mg.manual_seed(0)
        before = system.state_dict()
        for _ in steps(system, "float32", int(count), 8, synchronised=False):
            pass
        expect_same(system, distributed.world(), int(count))
        after = system.state_dict()
        found = distributed.world().comm.allgather({key: value.tobytes() for key, value in after.items()})
        assert found[0] == found[-1]
        assert any(not np.array_equal(before[key], after[key]) for key in before)
        if distributed.world().is_first:
            print(name, "is the same", flush=True)


def overlap(bucket_bytes: str) -> None:
    """Of each sum over the ranks: how many ops had still to go backward when it began, and its bytes."""
    world = distributed.world()
    mg.manual_seed(0)
    net = nn.Sequential(*[nn.Linear(50, 50) for _ in range(20)])
    reducer = distributed.GradientMeans(world, int(bucket_bytes))
    for p in net.parameters():
        p.reducer = reducer
    done, began = [0], []
    start = world.start

    def counted(backward: Any) -> Any:
        def function(op: Op, gy: Tensor) -> Any:
            done[0] += 1
            return backward(op, gy)

        return function

    for op in registry.values():
        op.backward = counted(op.backward)  # type: ignore[method-assign]

    def noted(array: np.ndarray) -> Any:
        began.append((done[0], array.nbytes))
        return start(array)

    world.start = noted  # type: ignore[method-assign]
    net(mg.random.normal((4, 50), device="cpu")).mean().backward()
    if world.is_first:
        print([(done[0] - ops, size) for ops, size in began], flush=True)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
