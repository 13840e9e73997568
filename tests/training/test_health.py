"""Health: what is not finite is named; failing runs are told in words, once; healthy ones are left alone."""

import dataclasses
import json
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from example_modules import load_example

import minigan as mg
from minigan import backend, nn, optim
from minigan.models import Generator
from minigan.training.health import Health, diversity, non_finite
from minigan.training.system import System

Series = dict[str, np.ndarray]

CUDA = pytest.mark.cuda, pytest.mark.skipif(backend.cuda_problem() is not None, reason=str(backend.cuda_problem()))


# ---- values that are not finite --------------------------------------------------------------------------------------


class Small(System):
    """Two networks, one of them nested, with batch norm, an optimizer each, gradients, and a tensor of its own."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.generator = Generator(
            nn.Linear(4, 12), nn.BatchNorm2d(12), nn.Reshape(2, 2, 3), nn.Conv2d(3, 3, 3, padding=1), z_shape=(4,)
        )
        self.discriminator = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), nn.ELU(), nn.Linear(5, 1))
        for network in (self.generator, self.discriminator):
            network.to(device)
        self.generator_adam = optim.Adam(self.generator.parameters(), 1e-3)
        self.discriminator_adam = optim.Adam(self.discriminator.parameters(), 1e-3)
        self.k = mg.tensor(0.5, device=device)
        self.step(self.generator.noise(7))

    def step(self, real: mg.Tensor) -> dict[str, mg.Tensor]:
        loss = self.discriminator(self.generator(real)).mean()
        loss.backward()
        self.generator_adam.step()
        self.discriminator_adam.step()
        return {"loss_generator": loss}


HEALTHY = {"loss_discriminator": 1.25, "loss_generator": 0.5}


@pytest.mark.parametrize("device", ["cpu", "emulated", pytest.param("cuda", marks=CUDA)])
def test_what_is_planted_is_named_with_network_and_layer(device: str) -> None:
    def gradient(parameter: mg.Tensor) -> mg.Tensor:
        assert parameter.grad is not None
        return parameter.grad

    plants: list[tuple[Callable[[Small], backend.Array], str]] = [
        (lambda s: s.generator[3].weight.data, "generator, layer 3 (Conv2d), weight"),
        (lambda s: s.generator[1].running_var.data, "generator, layer 1 (BatchNorm2d), running_var"),
        (lambda s: s.discriminator[0][1].bias.data, "discriminator, layer 0.1 (Linear), bias"),
        (lambda s: s.k.data, "k"),
        (lambda s: gradient(s.discriminator[2].bias).data, "the gradient of discriminator, layer 2 (Linear), bias"),
        (lambda s: s.generator_adam._m[2], "generator_adam's moment m of generator, layer 1 (BatchNorm2d), gamma"),
        (lambda s: s.generator_adam._v[0], "generator_adam's moment v of generator, layer 0 (Linear), weight"),
    ]
    for find, words in plants:
        for value in (np.nan, np.inf, -np.inf):
            system = Small(device)
            assert non_finite(system, HEALTHY) is None
            find(system).reshape(-1)[-1:] = value  # a view: arrays of layers are contiguous
            assert non_finite(system, HEALTHY) == f"not finite: {words}"


def test_losses_that_are_not_finite_are_named_with_their_values() -> None:
    system = Small()
    assert non_finite(system, {**HEALTHY, "M": float("nan")}) == "not finite: M (nan)"
    assert non_finite(system, {**HEALTHY, "loss_generator": mg.tensor(np.float32(-np.inf))}) == (
        "not finite: loss_generator (-inf)"
    )
    assert non_finite(system, {"a": float("inf"), "b": 1.0, "c": float("nan")}) == (
        "not finite: a (inf) and 1 other values of the log"
    )


def test_infinities_that_cancel_and_sums_that_overflow() -> None:
    system = Small()
    weight = system.generator[0].weight.data
    weight[...] = 3e38  # the sum of these overflows, but each is finite
    assert non_finite(system, HEALTHY) is None
    weight[0, :2] = np.inf, -np.inf
    assert non_finite(system, HEALTHY) == "not finite: generator, layer 0 (Linear), weight"


def test_what_makes_the_others_comes_first() -> None:
    """One bad weight, a step further: everything is not finite, and the weight still opens the sentence."""
    system = Small()
    system.generator[0].weight.data[0, 0] = np.nan
    with np.errstate(all="ignore"):
        values = system.step(system.generator.noise(7))
    found = non_finite(system, values)
    assert found is not None
    weights, gradients, moments, losses = found.split("; ")
    assert weights.startswith("not finite: generator, layer 0 (Linear), weight and ")
    assert gradients.startswith("the gradient of generator, layer 0 (Linear), weight and ")
    assert moments.startswith("generator_adam's moment m of generator, layer 0 (Linear), weight and ")
    assert losses == "loss_generator (nan)"


def test_the_average_is_left_out_and_views_and_missing_gradients_are_fine() -> None:
    system = Small()
    system.average = Generator(nn.Linear(4, 3), z_shape=(4,))
    system.average[0].weight.data[...] = np.nan
    system.generator_adam.zero_grad()
    system.generator[0].weight._data = np.broadcast_to(np.float32(1.0), (12, 4))
    assert non_finite(system, HEALTHY) is None


@pytest.mark.parametrize("name", ["cats", "simpsons", "anime", "maxpool", "began"])
def test_every_system_is_looked_through(name: str) -> None:
    module = load_example(name)
    tiny = dataclasses.replace(module.PRESETS["small"], image_size=(16, 16), base_channels=2, z_size=5, batch_size=4)
    mg.manual_seed(0)
    system = getattr(module, name.capitalize())(tiny, "cpu")
    low, high = system.generator.pixels
    values = system.step(mg.random.uniform((4, 16, 16, 3), low, high, device="cpu"))
    assert non_finite(system, values) is None
    state = system.state_dict()
    for key in [key for key in state if not key.startswith("average")]:
        planted = {**state, key: np.full_like(state[key], np.nan)}
        system.load_state_dict(planted, system.scalars())
        found = non_finite(system, values)
        assert found is not None, key
        assert ";" not in found, key  # this tensor, and no other
    system.load_state_dict(state, system.scalars())
    assert non_finite(system, values) is None


# ---- diversity -------------------------------------------------------------------------------------------------------


def test_diversity_is_the_mean_deviation_over_the_images() -> None:
    images = np.random.default_rng(0).integers(0, 256, (19, 5, 7, 3), np.uint8)
    assert diversity(images) == pytest.approx(images.astype(np.float64).std(axis=0).mean(), rel=1e-12)
    assert diversity(images[:1].repeat(111, axis=0)) == 0.0  # of a detailed image: it is not contrast that counts
    extremes = np.array([0, 255], np.uint8).repeat(50 * 12).reshape(100, 2, 2, 3)
    assert diversity(extremes) == 127.5


# ---- runs that go wrong, made up -------------------------------------------------------------------------------------


def noisy(means: np.ndarray, noise: float, seed: int = 0) -> np.ndarray:
    """A series around means, each value off by a factor whose logarithm has the deviation `noise`."""
    return means * np.exp(np.random.default_rng(seed).normal(0, noise, len(means)))


def line(*points: tuple[int, float]) -> np.ndarray:
    """Means at each step, straight between the points (step, mean)."""
    steps, values = zip(*points, strict=True)
    return np.interp(np.arange(1, steps[-1] + 1), steps, values)


def watch(health: Health, series: Mapping[str, np.ndarray], every: int = 1, first: int = 1) -> list[str]:
    """All findings of a run that logs every so many steps."""
    found = []
    for step in range(first, len(next(iter(series.values()))) + 1):
        if step % every == 0:
            found += health.watch_losses(step, {name: float(values[step - 1]) for name, values in series.items()})
    return found


def crisis(usual: float, bad: float, worse: float) -> np.ndarray:
    """Means that go from bad to worse early, for 200 steps, and late, for 400."""
    early = (49, usual), (50, bad), (240, worse), (250, usual)
    late = (5499, usual), (5500, bad), (5900, worse), (5901, usual)
    return line((1, usual), *early, *late, (8000, usual))


@pytest.fixture
def health() -> Health:
    """With data whose diversity is about 74."""
    return Health(np.random.default_rng(0).integers(0, 256, (100, 8, 8, 3), np.uint8))


def grids(spread: float, seed: int = 0) -> np.ndarray:
    """20 samples that differ by about so much."""
    noise = np.random.default_rng(seed).normal(128, spread, (20, 8, 8, 3))
    return noise.clip(0, 255).astype(np.uint8)


WON = {
    "d_real": noisy(line((1, 0.5), (400, 0.85), (1200, 0.89)), 0.02),
    "d_fake": noisy(line((1, 0.5), (300, 0.2), (500, 0.01), (1200, 0.0005)), 0.5, 1),
    "loss_generator": noisy(line((1, 0.7), (300, 3.0), (500, 5.0), (1200, 9.0)), 0.2, 2),
}
CHANCE = {
    "d_real": noisy(line((1, 0.6), (200, 0.5), (2000, 0.5)), 0.02),
    "d_fake": noisy(line((1, 0.4), (200, 0.5), (2000, 0.5)), 0.02, 1),
    "g_loss": noisy(line((1, 1.0), (200, 0.693), (2000, 0.693)), 0.02, 2),
}
K_AT_0 = {"k": np.zeros(3000), "M": noisy(line((1, 0.7), (300, 0.1), (3000, 0.06)), 0.1)}
K_AT_1 = {"k": line((1, 0.0), (900, 1.0), (3000, 1.0)), "M": K_AT_0["M"]}
M_ROSE = {
    "k": line((1, 0.0), (3000, 0.06)),
    "M": noisy(line((1, 0.7), (300, 0.1), (2000, 0.06), (2300, 0.2), (3000, 0.2)), 0.1),
}


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize(
    ("series", "words", "earliest", "latest"),
    [
        (WON, ["the discriminator wins", "d_real", "d_fake", "loss", "discriminator in the preset"], 700, 1100),
        (CHANCE, ["at chance", "d_real", "0.5", "stays at 0.", "ideal end of training"], 650, 900),
        (K_AT_0, ["k is stuck at 0", "since step 0.", "gamma"], 1000, 1050),
        (K_AT_1, ["k is stuck at 1", "step_of_k"], 1800, 2000),
        (M_ROSE, ["M, its measure of convergence, rose to 0.", "times its lowest value, 0.06", "no fault"], 2200, 2600),
    ],
    ids=["discriminator", "chance", "k at 0", "k at 1", "M"],
)
def test_each_failure_is_told_once_with_numbers_and_what_to_try(
    health: Health, series: Series, words: list[str], earliest: int, latest: int, every: int
) -> None:
    found = watch(health, series, every)
    assert len(found) == 1, found
    assert all(word in found[0] for word in words)
    assert "--resume --from STEP" in found[0]
    assert "in a new run try" in found[0].replace("try in a new run", "in a new run try")
    assert "\n" not in found[0]
    step = int(found[0].removeprefix("step ").partition(":")[0].replace(",", ""))
    assert earliest <= step <= latest


def test_a_discriminator_that_won_at_once_is_told_though_the_loss_stays(health: Health) -> None:
    series = {"d_real": np.ones(400), "d_fake": np.full(400, 1e-9), "g_loss": noisy(np.full(400, 20.0), 0.1)}
    found = watch(health, series)
    assert len(found) == 1
    assert "the discriminator wins: since step 0 " in found[0]


def test_mode_collapse_is_told_once_and_against_what(health: Health) -> None:
    found = []
    for step in range(0, 1501, 50):
        found += health.watch_samples(step, grids(50 if 100 < step < 800 else 3, step))
    assert len(found) == 1, found
    assert found[0].startswith("step 900: mode collapse: ")
    assert all(word in found[0] for word in ("fell from 4", "to 2.", "that of the data is 74", "--average"))


def test_samples_that_never_differed_are_told_late(health: Health) -> None:
    found = []
    for step in range(0, 2001, 100):
        found += health.watch_samples(step, grids(2, step))
    assert len(found) == 1, found
    assert found[0].startswith("step 1,000: mode collapse: ")
    assert "since step 0;" in found[0]


# ---- healthy runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_said_of_healthy_runs(health: Health, seed: int, every: int) -> None:
    """The shapes of runs that ended well, with noise: the discriminator ahead at first, or at the end, but not lost."""
    cats = {
        "loss_discriminator": noisy(line((1, 1.4), (50, 1.4), (5000, 0.9)), 0.3, seed),
        "loss_generator": noisy(line((1, 0.7), (25, 9.0), (100, 4.5), (150, 3.0), (5000, 3.5)), 0.4, seed + 10),
        "d_real": noisy(line((1, 0.5), (25, 0.85), (150, 0.6), (5000, 0.8)), 0.1, seed + 20),
        "d_fake": noisy(line((1, 0.5), (25, 0.05), (150, 0.3), (5000, 0.15)), 0.5, seed + 30),
    }
    # A strong discriminator, and a generator that holds its own all along: no rise.
    strong = {
        "g_loss": noisy(line((1, 0.7), (500, 4.6), (6000, 4.8)), 0.3, seed),
        "d_real": noisy(line((1, 0.5), (500, 0.97), (6000, 0.97)), 0.02, seed + 10),
        "d_fake": noisy(line((1, 0.5), (500, 0.05), (6000, 0.05)), 0.5, seed + 20),
    }
    # A crisis of 200 steps at the beginning, and one of 400 in a long run, both overcome.
    crises = {
        "g_loss": noisy(crisis(2.0, 6.0, 20.0), 0.2, seed),
        "d_real": noisy(crisis(0.6, 1.0, 1.0), 0.02, seed + 10),
        "d_fake": noisy(crisis(0.3, 1e-3, 1e-6), 0.3, seed + 20),
    }
    # Nearly in balance, but alive: the losses sway.
    balance = {
        "g_loss": noisy(0.8 + 0.2 * np.sin(np.arange(5000) / 150), 0.1, seed),
        "d_real": noisy(np.full(5000, 0.5), 0.05, seed + 10),
        "d_fake": noisy(np.full(5000, 0.5), 0.05, seed + 20),
    }
    # k is 0 for some hundred steps before it grows, and M falls, then stays.
    began = {
        "k": noisy(line((1, 0.0), (600, 0.0), (3000, 0.003), (9000, 0.06)), 0.3, seed),
        "M": noisy(line((1, 0.73), (100, 0.1), (1000, 0.06), (9000, 0.055)), 0.2, seed + 10),
    }
    state = health.state_dict()
    for series in (cats, strong, crises, balance, began):
        health.load_state_dict(state)
        assert watch(health, series, every) == []


def test_nothing_is_said_of_short_runs(health: Health) -> None:
    """30 steps, whatever they look like, are too few; so are the steps before anything is learnt."""
    for d_real, d_fake, loss in ((0.5, 0.5, 0.69), (1.0, 0.0, 30.0), (0.0, 1.0, 0.0)):
        constant = {"d_real": d_real, "d_fake": d_fake, "loss_generator": loss, "k": 0.0, "M": 1.0}
        fresh = Health(grids(50))
        assert watch(fresh, {name: np.full(30, value) for name, value in constant.items()}) == []
        assert fresh.watch_samples(0, grids(0)) == []
        assert fresh.watch_samples(30, grids(0)) == []
    untrained = {"d_real": np.full(400, 0.5), "d_fake": np.full(400, 0.5), "g_loss": np.full(400, 0.69)}
    assert watch(health, untrained) == []


def test_nothing_is_said_of_healthy_samples(health: Health) -> None:
    """From grey, or from noise, to images, with a jump back; one that lasts longer is another matter."""
    for start in (0.5, 90):
        fresh = Health(np.random.default_rng(0).integers(0, 256, (100, 8, 8, 3), np.uint8))
        found = []
        for step in range(0, 3001, 50):
            spread = start if step < 150 else 5 if step in (1000, 1050) else min(12 + step / 40, 60)
            found += fresh.watch_samples(step, grids(spread, step))
        assert found == []
    # Few grids, far apart; many, but for few steps.
    for every, bad in ((200, (1000, 1200)), (10, range(400, 460))):
        fresh = Health(np.random.default_rng(0).integers(0, 256, (100, 8, 8, 3), np.uint8))
        for step in range(0, 1600, every):
            assert fresh.watch_samples(step, grids(2 if step in bad else 50, step)) == []
    # A generator that is slow to differ, every ten steps: small falls from a small height are no collapse.
    assert [
        text for step in range(0, 900, 10) for text in health.watch_samples(step, grids(6 if step < 400 else 1))
    ] == []
    for step in range(0, 3000, 100):  # one sample cannot differ from itself
        assert health.watch_samples(step, grids(50, step)[:1]) == []
    same = Health(grids(0))  # nor can samples be too alike where the data are all alike
    assert [text for step in range(0, 3000, 100) for text in same.watch_samples(step, grids(0))] == []


# ---- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("series", [WON, CHANCE, K_AT_0, M_ROSE], ids=["discriminator", "chance", "k at 0", "M"])
def test_a_resumed_run_neither_repeats_nor_forgets(series: Series) -> None:
    """Through JSON after every seventh step, with samples that collapse: the same findings at the same steps."""
    real = grids(50)
    steps = len(next(iter(series.values())))
    found: list[list[str]] = []
    sizes = []
    for resumes in (False, True):
        health, texts = Health(real), []
        for step in range(1, steps + 1):
            texts += health.watch_losses(step, {name: float(values[step - 1]) for name, values in series.items()})
            if step % 50 == 0:
                texts += health.watch_samples(step, grids(50 if step < 600 else 2, step))
            if resumes and step % 7 == 0:
                saved = json.dumps(health.state_dict())
                sizes.append(len(saved))
                health = Health(real)
                health.load_state_dict(json.loads(saved))
        found.append(texts)
    assert found[0] == found[1]
    assert len(found[0]) == 2
    assert max(sizes) < 1000


def test_after_a_rollback_what_was_not_yet_found_is_found_again(health: Health) -> None:
    first = watch(health, {name: values[:450] for name, values in WON.items()})
    before = json.loads(json.dumps(health.state_dict()))
    found = watch(health, WON, first=451)
    assert (first, len(found)) == ([], 1)
    health.load_state_dict(before)
    assert watch(health, WON, first=451) == found


def test_a_state_that_lacks_something_is_refused(health: Health) -> None:
    state = health.state_dict()
    for key in state:
        with pytest.raises(KeyError, match=key):
            health.load_state_dict({name: value for name, value in state.items() if name != key})
