"""adam.cu: many parameters, one launch, and the numbers of the algorithm in float64."""

import numpy as np
import pytest
from leaf_checks import DTYPES, assert_within, eps, run

import minigan as mg
from minigan import optim
from minigan.kernel_launch import launch
from minigan.optim import BLOCK_ELEMENTS, MOST_TENSORS, adam_update

# Blocks hold 2048 elements: less, as many, one more, none, several blocks; enough parameters for the search to matter.
SIZES = [(7, 3), (1,), (2048,), (0, 5), (2049,), (), (33,), (4096 + 19,), (0,), (257,)]


def arrays(dtype, seed=0):
    """w, g, m, v of each size; gradients of very different sizes."""
    rng = np.random.default_rng(seed)
    found = []
    for size in SIZES:
        w, g, m = (np.asarray(rng.standard_normal(size)) for _ in range(3))
        found.append(tuple(np.asarray(a, dtype) for a in (w, g * 10.0 ** rng.integers(-4, 2), m, np.abs(w * m))))
    return found


def reference(w, g, m, v, rate, keep1, keep2, epsilon):
    w, g, m, v = (a.astype(np.float64) for a in (w, g, m, v))
    m = m + keep1 * (g - m)
    v = v + keep2 * (g * g - v)
    return w - rate * m / (np.sqrt(v) + epsilon), m, v


NUMBERS = (0.1, 0.5, 0.001, 1e-8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_parameters_in_one_launch(dtype, monkeypatch):
    launches = []
    real_launch = optim.launch
    monkeypatch.setattr(
        optim, "launch", lambda *args, **settings: (launches.append(args), real_launch(*args, **settings))
    )

    def update():
        # Between guards, which `run` looks at: the kernel gets bare addresses, so nothing else would notice.
        tensors = []
        for quadruple in arrays(dtype):
            copies = tuple(np.empty(a.shape, a.dtype) for a in quadruple)
            for copy, a in zip(copies, quadruple, strict=True):
                copy[...] = a
            tensors.append(copies)
        adam_update("emulated", tensors, *NUMBERS)
        return tuple(a for quadruple in tensors for a in quadruple)

    results = run(update)
    assert len(launches) == 3  # one for each seed
    assert launches[0][2] == sum(-(-int(np.prod(size)) // BLOCK_ELEMENTS) for size in SIZES)
    for i, (w, g, m, v) in enumerate(arrays(dtype)):
        new_w, same_g, new_m, new_v = results[4 * i : 4 * i + 4]
        np.testing.assert_array_equal(same_g, g)
        expected_w, expected_m, expected_v = reference(w, g, m, v, *NUMBERS)
        # A few roundings of the terms. v may be much smaller than what it is made of, but is never negative.
        assert_within(new_m, expected_m, 4 * eps(dtype) * (np.abs(g) + np.abs(m)))
        assert_within(new_v, expected_v, 4 * eps(dtype) * (g * g + v))
        relative = 8 * eps(dtype) * (1 + np.abs(g) + np.abs(m)) * (1 + 1 / np.sqrt(expected_v + 1e-30))
        assert_within(new_w, expected_w, 2 * eps(dtype) * np.abs(w) + relative)


def test_more_tensors_than_a_launch_takes():
    rng = np.random.default_rng(2)
    tensors = [tuple(rng.uniform(0.5, 1, 3) for _ in range(4)) for _ in range(2 * MOST_TENSORS + 3)]
    expected = [reference(*quadruple, *NUMBERS)[0] for quadruple in tensors]
    adam_update("emulated", tensors, *NUMBERS)
    for (w, *_), value in zip(tensors, expected, strict=True):
        assert_within(w, value, 1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_in_memory_are_the_rate_and_epsilon(dtype):
    """What a graph replays: the same to the last bit."""
    results = []
    for extra in ((), (np.array([NUMBERS[0], NUMBERS[3]]),)):
        tensors = arrays(dtype)
        rate, keep1, keep2, epsilon = NUMBERS if not extra else (9.0, *NUMBERS[1:3], 9.0)
        adam_update("emulated", tensors, rate, keep1, keep2, epsilon, *extra)
        results.append(tensors)
    for one, two in zip(*results, strict=True):
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("count", [1, 19, 64])
def test_words_are_put_into_their_places(count):
    """graph.cu, by which a graph gets such numbers."""
    words = np.random.default_rng(0).integers(2**64, size=count, dtype=np.uint64)

    def fill():
        target = np.full(count + 1, 7, np.uint64)
        launch("graph.cu", "set_words", 1, 64, [{"words": words}, target[:count], count], device="emulated")
        return target

    np.testing.assert_array_equal(run(fill), [*words, 7])


def trained(device, dtype="float64", layout=np.asarray, steps=4):
    rng = np.random.default_rng(5)
    shapes = [(33, 7), (1,), (), (2049,), (5, 3, 3, 2)]
    parameters = [
        mg.tensor(layout(rng.standard_normal(s)).astype(dtype), requires_grad=True, device=device) for s in shapes
    ]
    adam = optim.Adam(parameters, 0.1, 0.5)
    for step in range(steps):
        for p in parameters:
            p.grad = mg.tensor(layout(rng.standard_normal(p.shape)).astype(dtype), device=device)
        if step == 2:
            parameters[1].grad = None
        adam.lr = 0.1 / (step + 1)
        adam.step()
    return [p.numpy() for p in parameters], adam.state_dict()


@pytest.mark.parametrize("layout", [np.asarray, np.asfortranarray, lambda a: a.T.copy().T])
@pytest.mark.parametrize("dtype", DTYPES)
def test_optimizer_as_on_the_cpu(dtype, layout):
    ours, our_state = trained("emulated", dtype, layout)
    theirs, their_state = trained("cpu", dtype, layout)
    for a, b in zip(ours, theirs, strict=True):
        assert_within(a, b, 20 * eps(dtype))
    assert our_state.keys() == their_state.keys()
    for name, value in our_state.items():
        assert_within(np.asarray(value), np.asarray(their_state[name]), 20 * eps(dtype))


def test_each_dtype_has_its_launch(monkeypatch):
    launches = []
    real_launch = optim.launch
    monkeypatch.setattr(
        optim, "launch", lambda *args, **settings: (launches.append(args), real_launch(*args, **settings))
    )
    parameters = [mg.tensor(np.ones(3, dtype), requires_grad=True, device="emulated") for dtype in (*DTYPES, *DTYPES)]
    adam = optim.Adam(parameters, 1.0)
    for p in parameters:
        p.grad = mg.tensor(np.full(3, 2, p.dtype), device="emulated")
    adam.step()
    assert len(launches) == 2
    for p in parameters:
        assert_within(p.numpy(), np.zeros(3), 1e-6)


def test_nothing_to_do_launches_nothing():
    adam_update("emulated", [(np.empty((0, 3)),) * 4], *NUMBERS)
    adam = optim.Adam([mg.tensor(np.ones(3), requires_grad=True, device="emulated")], 1.0)
    adam.step()
    assert adam.steps == 1
