"""The first steps of the cats system against PyTorch, from the same weights, noise and images."""

import dataclasses
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import minigan as mg
from minigan import optim

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra bench)")
functional = torch.nn.functional


def _parameters(network: mg.nn.Module, kept: tuple[str, ...] = ("weight", "bias", "gamma", "beta")) -> dict[str, Any]:
    """minigan's parameters by name as PyTorch leaves: filters (a, R, S, b) as (a, b, R, S)."""
    found = {}
    for name, p in network.named_parameters():
        assert name.split(".")[1] in kept
        array = p.numpy().transpose(0, 3, 1, 2) if p.ndim == 4 else p.numpy()
        found[name] = torch.tensor(array.copy(), requires_grad=True)
    return found


def _normalize(x: Any, p: dict[str, Any], layer: int) -> Any:
    y = functional.batch_norm(x, None, None, p[f"{layer}.gamma"], p[f"{layer}.beta"], training=True, eps=1e-5)
    return functional.leaky_relu(y, 0.2)


def _generator(p: dict[str, Any], z: Any, size: int) -> Any:
    x = functional.linear(z, p["0.weight"], p["0.bias"])
    x = functional.leaky_relu(x.reshape(len(z), size // 16, size // 16, -1).permute(0, 3, 1, 2), 0.2)
    for layer in (3, 6, 9, 12):
        # SAME, five taps, stride 2: of the full output, one pixel is cropped before and two after.
        x = functional.conv_transpose2d(x, p[f"{layer}.weight"], p[f"{layer}.bias"], stride=2)[:, :, 1:-2, 1:-2]
        x = _normalize(x, p, layer + 1)
    return torch.tanh(functional.conv_transpose2d(x, p["15.weight"], p["15.bias"], padding=2))


def _discriminator(p: dict[str, Any], x: Any) -> Any:
    for layer, stride in ((0, 2), (3, 2), (6, 2), (9, 1), (12, 2)):
        x = functional.pad(x, (1, 2, 1, 2) if stride == 2 else (2, 2, 2, 2))
        x = functional.conv2d(x, p[f"{layer}.weight"], p[f"{layer}.bias"], stride=stride)
        x = _normalize(x, p, layer + 1)
    return functional.linear(x.permute(0, 2, 3, 1).flatten(1), p["16.weight"], p["16.bias"])


def _loss(logits: Any, target: float) -> Any:
    return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def _in_double(network: mg.nn.Module) -> None:
    for _, t in network.named_tensors():
        t._data = t.data.astype(np.float64)
        t.dtype = t.data.dtype


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        # The same algorithm, to the last digits.
        (np.float64, 1e-9),
        # Rounding, 6e-8 for one operation. Adam divides each gradient by its own size, so that where one is nothing but
        # rounding (a bias before batch norm has no effect) its step is as long as any other, in a random direction.
        (np.float32, 5e-3),
    ],
)
def test_losses_of_the_first_five_steps_equal_pytorchs(
    cats: ModuleType, monkeypatch: pytest.MonkeyPatch, dtype: type, tolerance: float
) -> None:
    size, batch = 32, 8
    settings = dataclasses.replace(cats.PRESETS["paper"], image_size=(size, size), base_channels=8, batch_size=batch)
    mg.manual_seed(0)
    ours = cats.Cats(settings, "cpu")
    if dtype is np.float64:
        _in_double(ours.generator)
        _in_double(ours.discriminator)
        ours.generator_adam = optim.Adam(ours.generator.parameters(), settings.lr_generator, settings.beta1)
        ours.discriminator_adam = optim.Adam(ours.discriminator.parameters(), settings.lr_discriminator, settings.beta1)
    g, d = _parameters(ours.generator), _parameters(ours.discriminator)
    adam_g = torch.optim.Adam(g.values(), settings.lr_generator, (settings.beta1, 0.999))
    adam_d = torch.optim.Adam(d.values(), settings.lr_discriminator, (settings.beta1, 0.999))
    rng = np.random.default_rng(0)
    for step in range(5):
        real = rng.uniform(-1, 1, (batch, size, size, 3)).astype(dtype)
        z = rng.uniform(-1, 1, (batch, 100)).astype(dtype)
        monkeypatch.setattr(ours.generator, "noise", lambda count, z=z: mg.tensor(z, device="cpu"))
        losses = ours.step(mg.tensor(real, device="cpu"))

        fake = _generator(g, torch.tensor(z), size)
        loss_d = _loss(_discriminator(d, torch.tensor(real.transpose(0, 3, 1, 2))), 0.9)
        loss_d = loss_d + _loss(_discriminator(d, fake.detach()), 0.0)
        adam_d.zero_grad()
        loss_d.backward()
        adam_d.step()
        loss_g = _loss(_discriminator(d, fake), 1.0)
        adam_g.zero_grad()
        loss_g.backward()
        adam_g.step()
        if step == 0:  # before any update only the forward passes' own rounding counts
            np.testing.assert_allclose(losses["loss_discriminator"].item(), loss_d.item(), rtol=1e-6)
        np.testing.assert_allclose(losses["loss_discriminator"].item(), loss_d.item(), rtol=tolerance)
        np.testing.assert_allclose(losses["loss_generator"].item(), loss_g.item(), rtol=tolerance)
