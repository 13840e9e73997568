"""PyTorch's side of `steps.py`: the training steps of the five systems, as a careful user of PyTorch writes them.

Written from the published descriptions, not from minigan's code. What makes a step fast and is the user's to do, is
done: channels_last, activations in place, targets made once, gradients set to None, a frozen discriminator in the
generator's update, no generated image made twice, the fused Adam (one pass over the parameters, on a CPU as well), and
no number read from the device within a step. Nothing is computed for the log but the losses.

TensorFlow's SAME, which these networks use, pads one more after than before where PyTorch pads alike. A program that
pads or crops by itself moves each such activation once more. But PyTorch's own padding (kernel 5, stride 2, padding 2,
output_padding 1) is SAME seen in a mirror: for even sizes, a network with all filters turned by 180 degrees gives the
mirrored result for mirrored images. So the networks here pad as PyTorch likes it, and `load_weights` and
`Step.load_draws` mirror what comes from minigan. Losses are the same in a mirror.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.nn.functional import l1_loss

Losses = dict[str, Any]
# What is timed: as Python runs it; its networks compiled; the whole step as one CUDA graph; and both.
VARIANTS = {"cpu": ("eager", "compiled"), "cuda": ("eager", "graphed", "compiled", "compiled, graphed")}
WARM_UP = 3  # steps before a capture: cuDNN's search, Adam's state


# ---- networks: images are N C H W in channels_last memory, that is, N H W C ------------------------------------------


class ToPixels(nn.Linear):
    """Dense, (N, inputs) -> (N, C, H, W)."""

    def __init__(self, inputs: int, height: int, width: int, channels: int) -> None:
        super().__init__(inputs, height * width * channels)
        self.size = height, width, channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).reshape(-1, *self.size).permute(0, 3, 1, 2)  # channels_last as it is


class FromPixels(nn.Linear):
    """(N, C, H, W) -> dense, (N, outputs)."""

    def __init__(self, height: int, width: int, channels: int, outputs: int) -> None:
        super().__init__(height * width * channels, outputs)
        self.size = height, width, channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1).flatten(1))  # a view


def down(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2)


def up(inputs: int, outputs: int, kernel: int, stride: int = 2) -> nn.Module:
    return nn.ConvTranspose2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, (kernel - stride) % 2)


def normalized(layer: Any, momentum: float, epsilon: float, running: bool = True) -> list[nn.Module]:
    """The layer, batch norm and LReLU 0.2; momentum in Keras's sense. running=False: batch statistics always."""
    norm = nn.BatchNorm2d(layer.out_channels, epsilon, 1 - momentum, track_running_stats=running)
    return [layer, norm, nn.LeakyReLU(0.2, inplace=True)]


def cats(settings: Any, epsilon: float = 1e-5) -> tuple[nn.Module, nn.Module]:
    """(generator, discriminator)."""
    (h, w), c, keep = settings.image_size, settings.base_channels, settings.momentum
    small = h // 16, w // 16
    generator = [ToPixels(settings.z_size, *small, 16 * c), nn.LeakyReLU(0.2, inplace=True)]
    for inputs, outputs in ((16 * c, 8 * c), (8 * c, 4 * c), (4 * c, 2 * c), (2 * c, c)):
        generator += normalized(up(inputs, outputs, 5), keep, epsilon)
    generator += [up(c, 3, 5, stride=1), nn.Tanh()]
    widths = [3, c, 2 * c, 4 * c, 8 * c, 16 * c]
    discriminator: list[nn.Module] = []
    for inputs, outputs, stride in zip(widths, widths[1:], (2, 2, 2, 1, 2), strict=False):
        discriminator += normalized(down(inputs, outputs, 5, stride), keep, epsilon, running=False)
    discriminator.append(FromPixels(*small, 16 * c, 1))
    return nn.Sequential(*generator), nn.Sequential(*discriminator)


def anime(settings: Any) -> tuple[nn.Module, nn.Module]:
    """(generator, discriminator); the discriminator without its sigmoid."""
    (h, w), c = settings.image_size, settings.base_channels
    small = h // 16, w // 16
    generator = normalized(nn.ConvTranspose2d(settings.z_size, 8 * c, small), 0.5, 1e-3)
    for inputs, outputs in ((8 * c, 4 * c), (4 * c, 2 * c), (2 * c, c)):
        generator += normalized(up(inputs, outputs, 4), 0.5, 1e-3)
    generator += [*normalized(down(c, c, 3), 0.5, 1e-3), up(c, 3, 4), nn.Tanh()]
    discriminator = [down(3, c, 4, 2), nn.LeakyReLU(0.2, inplace=True)]
    for inputs, outputs in ((c, 2 * c), (2 * c, 4 * c), (4 * c, 8 * c)):
        discriminator += normalized(down(inputs, outputs, 4, 2), 0.5, 1e-3, running=False)
    discriminator.append(FromPixels(*small, 8 * c, 1))
    return nn.Sequential(*generator), nn.Sequential(*discriminator)


def maxpool(settings: Any) -> tuple[nn.Module, nn.Module]:
    """(generator, discriminator); the discriminator without its sigmoid."""
    (h, w), c = settings.image_size, settings.base_channels
    small = h // 8, w // 8
    generator = [ToPixels(settings.z_size, *small, 4 * c), nn.ReLU(inplace=True)]
    for inputs, outputs in ((4 * c, 4 * c), (4 * c, 2 * c), (2 * c, c)):
        generator += [up(inputs, outputs, 5), nn.ReLU(inplace=True)]
    generator += [down(c, 3, 5), nn.Tanh()]
    discriminator: list[nn.Module] = []
    for inputs, outputs in ((3, 2 * c), (2 * c, 4 * c), (4 * c, 8 * c)):
        discriminator += [down(inputs, outputs, 5), nn.LeakyReLU(0.3, inplace=True), nn.MaxPool2d(2)]
    discriminator += [FromPixels(*small, 8 * c, 32 * c), nn.LeakyReLU(0.3, inplace=True), nn.Linear(32 * c, 1)]
    return nn.Sequential(*generator), nn.Sequential(*discriminator)


def began(settings: Any) -> tuple[nn.Module, nn.Module]:
    """(generator, autoencoder)."""
    (h, w), c, z = settings.image_size, settings.base_channels, settings.z_size
    small = h // 8, w // 8

    def elu(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
        return [down(inputs, outputs, 3, stride), nn.ELU(inplace=True)]

    def decoder() -> list[nn.Module]:
        layers: list[nn.Module] = [ToPixels(z, *small, c)]
        for block in range(4):
            layers += [nn.Upsample(scale_factor=2, mode="nearest")] if block else []
            layers += [*elu(c, c), *elu(c, c)]
        return [*layers, down(c, 3, 3)]

    encoder: list[nn.Module] = []
    for inputs, outputs in ((3, c), (c, 2 * c), (2 * c, 3 * c)):
        encoder += [*elu(inputs, outputs), *elu(outputs, outputs, stride=2)]
    encoder += [*elu(3 * c, 4 * c), *elu(4 * c, 4 * c), FromPixels(*small, 4 * c, z)]
    return nn.Sequential(*decoder()), nn.Sequential(*encoder, *decoder())


NETWORKS: dict[str, Callable[[Any], tuple[nn.Module, nn.Module]]] = {
    "cats": cats,
    "simpsons": partial(cats, epsilon=5e-5),
    "anime": anime,
    "maxpool": maxpool,
    "began": began,
}


# ---- to PyTorch and back: the mirror ---------------------------------------------------------------------------------


def _mirrored(array: np.ndarray, layer: nn.Module | None = None) -> np.ndarray:
    """An image (N, H, W, C), or a parameter of a layer in minigan's order, mirrored; its own inverse."""
    if array.ndim == 4:
        return array[:, ::-1, ::-1]
    if isinstance(layer, ToPixels):  # weight (H W C, inputs), bias (H W C)
        return array.reshape(*layer.size, -1)[::-1, ::-1].reshape(array.shape)
    if isinstance(layer, FromPixels) and array.ndim == 2:  # weight (outputs, H W C)
        return array.reshape(-1, *layer.size)[:, ::-1, ::-1].reshape(array.shape)
    return array


def to_torch(array: np.ndarray, layer: nn.Module | None = None) -> torch.Tensor:
    """minigan's image, noise or parameter as PyTorch's, (N, C, H, W) or (a, b, R, S) in channels_last memory."""
    tensor = torch.from_numpy(np.array(_mirrored(array, layer), order="C"))  # a copy, which has no negative strides
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor


def _parameters(network: nn.Module) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    for layer in network.modules():
        for parameter in layer.parameters(recurse=False):
            yield layer, parameter


def load_weights(network: nn.Module, arrays: Sequence[np.ndarray]) -> None:
    """minigan's parameters into a network: both list them in the order of the tables, weight before bias."""
    with torch.no_grad():
        for (layer, parameter), array in zip(_parameters(network), arrays, strict=True):
            parameter.copy_(to_torch(array, layer))


def weights(network: nn.Module) -> list[np.ndarray]:
    """The way back."""
    found = []
    for layer, parameter in _parameters(network):
        array = parameter.detach().cpu().numpy()
        found.append(_mirrored(array.transpose(0, 2, 3, 1) if array.ndim == 4 else array, layer))
    return found


# ---- training steps --------------------------------------------------------------------------------------------------


class Noise(NamedTuple):
    """What a step draws: fresh values into the same memory each time, as a CUDA graph needs it."""

    values: torch.Tensor
    kind: str  # uniform, between a and b; or normal, of mean a and deviation b
    a: float
    b: float

    def draw(self) -> None:
        (self.values.uniform_ if self.kind == "uniform" else self.values.normal_)(self.a, self.b)


class Step:
    """A system in training. A subclass draws what it needs in `noises`, in the order of minigan's example.

    settings: the example's. numbers: what the example draws once for a run. batch: the size of every batch.
    before_update: the losses of the first step that no update has touched yet.
    """

    before_update: tuple[str, ...]

    def __init__(
        self,
        system: str,
        settings: Any,
        numbers: Mapping[str, float],
        batch: int,
        device: str = "cpu",
        precision: str = "float32",
        variant: str = "eager",
    ) -> None:
        self.settings, self.numbers, self.device, self.precision = settings, numbers, device, precision
        self.kind = device.partition(":")[0]
        if variant not in VARIANTS[self.kind]:
            raise ValueError(f"Step: expected one of {', '.join(VARIANTS[self.kind])} on {device}, got {variant!r}")
        set_precision(precision)
        self.generator, self.discriminator = NETWORKS[system](settings)
        self.networks = self.generator, self.discriminator
        for network in self.networks:
            network.to(device, memory_format=torch.channels_last)
        self.g: Callable[..., torch.Tensor] = self.generator
        self.d: Callable[..., torch.Tensor] = self.discriminator
        self.graphed = variant.endswith("graphed")
        self.compiled = variant.startswith("compiled")
        if self.compiled:
            # Dynamo counts recompilations for each line of code, which all networks of all cases share, and silently
            # goes on uncompiled after some; a fresh start for each case, and an error instead of the silence.
            torch._dynamo.reset()
            torch._dynamo.config.fail_on_recompile_limit_hit = True
            # max-autotune makes graphs of its own, of each network; none if the whole step becomes one.
            modes = {"cpu": "default", "cuda": "max-autotune-no-cudagraphs" if self.graphed else "max-autotune"}
            self.g, self.d = (torch.compile(one, mode=modes[self.kind], dynamic=False) for one in self.networks)
        self.batch = batch
        self.rates = self._rates()
        self.adam_d = self._adam(self.discriminator, self.rates[0])
        self.adam_g = self._adam(self.generator, self.rates[1])
        self.one, self.zero = self._target(1.0), self._target(0.0)
        self.noises = self._noises()
        self._replay: Callable[[], Losses] | None = None

    # ---- what a system defines ----

    def _noises(self) -> tuple[Noise, ...]:
        return (self._z(), self._z())

    def step(self, real: torch.Tensor) -> Losses:
        """One training step on real images (N, 3, H, W), and on the noise that was drawn."""
        raise NotImplementedError(f"{type(self).__name__} defines no step")

    # ---- parts ----

    def _rates(self) -> tuple[float, float]:
        """The learning rates of the discriminator and the generator now."""
        return self.settings.lr_discriminator, self.settings.lr_generator

    def _adam(self, network: nn.Module, lr: float) -> torch.optim.Adam:
        betas = getattr(self.settings, "beta1", 0.9), 0.999
        # A graph is captured with the addresses of what it reads, so the learning rate is then a tensor.
        rate = torch.tensor(lr, device=self.device) if self.graphed else lr
        epsilon = getattr(self.settings, "epsilon", 1e-8)
        return torch.optim.Adam(
            network.parameters(), rate, betas, epsilon, fused=True, capturable=self.graphed and self.kind == "cuda"
        )

    def _target(self, value: float) -> torch.Tensor:
        return torch.full((self.batch, 1), value, device=self.device)

    def _noise(self, shape: tuple[int, ...], kind: str, a: float, b: float) -> Noise:
        values = torch.empty(shape, device=self.device)
        return Noise(values.to(memory_format=torch.channels_last) if len(shape) == 4 else values, kind, a, b)

    def _z(self) -> Noise:
        return self._noise((self.batch, self.settings.z_size), "uniform", -1, 1)

    def _forward(self) -> AbstractContextManager[Any]:
        """Around what is computed with low precision; gradients follow the precision of their forward pass."""
        return torch.autocast(self.kind, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def _update(self, adam: torch.optim.Adam, loss: torch.Tensor) -> torch.Tensor:
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        return loss.detach()

    def _update_generator(self, loss: Callable[[], torch.Tensor]) -> torch.Tensor:
        """With a frozen discriminator, for which no gradients are computed."""
        self.discriminator.requires_grad_(False)
        with self._forward():
            loss_generator = loss()
        loss_generator = self._update(self.adam_g, loss_generator)
        self.discriminator.requires_grad_(True)
        return loss_generator

    # ---- from outside ----

    def draw(self) -> None:
        for noise in self.noises:
            noise.draw()

    def load_draws(self, arrays: Sequence[np.ndarray]) -> None:
        """What minigan drew, instead of `draw`."""
        expected = [tuple(noise.values.shape) for noise in self.noises]
        tensors = [to_torch(array) for array in arrays]
        if [tuple(one.shape) for one in tensors] != expected:
            raise ValueError(
                f"load_draws: expected noise of shapes {expected}, got {[tuple(t.shape) for t in tensors]}"
            )
        for noise, values in zip(self.noises, tensors, strict=True):
            noise.values.copy_(values)

    def run(self, real: torch.Tensor) -> Losses:
        """`step` by the variant: as it is, or replayed from the graph that `capture` made of it."""
        rates = self._rates()
        if rates != self.rates:
            self.rates = rates
            for adam, rate in zip((self.adam_d, self.adam_g), rates, strict=True):
                group = adam.param_groups[0]
                if self.graphed:
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate
        if self.compiled:
            torch.compiler.cudagraph_mark_step_begin()
        return self.step(real) if self._replay is None else self._replay()

    def _state(self) -> list[torch.Tensor]:
        """All tensors that a step changes, but for the optimizers'."""
        return [t for one in self.networks for t in one.state_dict().values()]

    def capture(self, real: torch.Tensor) -> None:
        """Makes the whole step one CUDA graph, on this batch; the state is afterwards as before."""
        state = self._state()
        before = [t.clone() for t in state]
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.draw()
                self.step(real)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        for adam in (self.adam_d, self.adam_g):
            adam.zero_grad(set_to_none=True)  # gradients then come from the graph's own memory
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            losses = self.step(real)

        def replay() -> Losses:
            graph.replay()
            return losses

        self._replay = replay
        for t, values in zip(state, before, strict=True):
            t.copy_(values)
        for adam in (self.adam_d, self.adam_g):
            for moments in adam.state.values():
                for t in moments.values():
                    t.zero_()


def set_precision(precision: str) -> None:
    """What PyTorch may round, explicitly, and that cuDNN searches. They say nothing about a CPU."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision != "float32"


class Cats(Step):
    """The same z for both updates, so each image is generated once."""

    before_update = ("loss_discriminator",)
    share = 1.0  # of the sum of both losses
    steps = 0

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.high = self._target(self._smooth())

    def _smooth(self) -> float:
        return 1 - self.settings.smooth

    def _noises(self) -> tuple[Noise, ...]:
        return (self._z(),)

    def _rates(self) -> tuple[float, float]:
        rates = super()._rates()
        if self.settings.halve_every is None:
            return rates
        left = 0.5 ** (self.steps / self.settings.halve_every)
        return rates[0] * left, rates[1] * left

    def run(self, real: torch.Tensor) -> Losses:
        losses = super().run(real)
        self.steps += 1
        return losses

    def _seen(self, real: torch.Tensor) -> torch.Tensor:
        return real

    def step(self, real: torch.Tensor) -> Losses:
        with self._forward():
            fake = self.g(self.noises[0].values)
            loss = bce(self.d(self._seen(real)), self.high) + bce(self.d(fake.detach()), self.zero)
        loss_discriminator = self._update(self.adam_d, loss * self.share if self.share != 1 else loss)
        loss_generator = self._update_generator(lambda: bce(self.d(fake), self.one))
        return {"loss_discriminator": loss_discriminator, "loss_generator": loss_generator}


class Simpsons(Cats):
    share = 0.5

    def _smooth(self) -> float:
        return self.numbers["smooth"]

    def _noises(self) -> tuple[Noise, ...]:
        return self._z(), self._noise((self.batch, 3, *self.settings.image_size), "normal", 0, 1)

    def _seen(self, real: torch.Tensor) -> torch.Tensor:
        return torch.add(real, self.noises[1].values, alpha=self.numbers["noise"])


class Anime(Step):
    before_update = ("loss_real",)

    def _noises(self) -> tuple[Noise, ...]:
        label = (self.batch, 1), "uniform", 0.0, self.settings.label_noise
        z = (self.batch, self.settings.z_size, 1, 1), "normal", 0, 1
        return self._noise(*label), self._noise(*label), self._noise(*z), self._noise(*z)

    def step(self, real: torch.Tensor) -> Losses:
        low, below_1, z, new_z = (noise.values for noise in self.noises)
        high = 1 - below_1
        self.generator.eval()
        with torch.no_grad(), self._forward():
            fake = self.g(z)
        self.generator.train()
        losses = {}
        for name, images, target in (("loss_real", real, high), ("loss_fake", fake, low)):
            with self._forward():
                loss = bce(self.d(images), target)
            losses[name] = self._update(self.adam_d, loss)
        return {**losses, "loss_generator": self._update_generator(lambda: bce(self.d(self.g(new_z)), high))}


class Maxpool(Step):
    before_update = ("d_loss",)

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.both = torch.cat([self.one, self.zero])

    def step(self, real: torch.Tensor) -> Losses:
        z, new_z = (noise.values for noise in self.noises)
        with torch.no_grad(), self._forward():
            fake = self.g(z)
        with self._forward():
            loss = bce(self.d(torch.cat([real, fake])), self.both)
        d_loss = self._update(self.adam_d, loss)
        return {"d_loss": d_loss, "g_loss": self._update_generator(lambda: bce(self.d(self.g(new_z)), self.one))}


class Began(Step):
    before_update = ("loss_real", "loss_gen_D", "loss_D")

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.k = torch.zeros((), device=self.device)

    def _rates(self) -> tuple[float, float]:
        return self.settings.lr, self.settings.lr * self.settings.generator_share

    def _state(self) -> list[torch.Tensor]:
        return [*super()._state(), self.k]

    def _loss(self, images: torch.Tensor) -> torch.Tensor:
        return l1_loss(self.d(images), images)

    def step(self, real: torch.Tensor) -> Losses:
        z, new_z = (noise.values for noise in self.noises)
        with torch.no_grad(), self._forward():
            fake = self.g(z)
        with self._forward():
            loss_real, loss_fake = self._loss(real), self._loss(fake)
        loss_d = self._update(self.adam_d, loss_real - self.k * loss_fake)
        loss_g = self._update_generator(lambda: self._loss(self.g(new_z)))
        loss_real, loss_fake = loss_real.detach(), loss_fake.detach()
        balance = self.settings.gamma * loss_real - loss_fake
        self.k.add_(balance, alpha=self.settings.step_of_k).clamp_(0, 1)
        return {"loss_real": loss_real, "loss_gen_D": loss_fake, "loss_D": loss_d, "loss_G": loss_g}


STEPS: dict[str, type[Step]] = {
    "cats": Cats,
    "simpsons": Simpsons,
    "anime": Anime,
    "maxpool": Maxpool,
    "began": Began,
}
