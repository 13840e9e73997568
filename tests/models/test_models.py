"""The networks of the five systems: their sizes to the last parameter, their inputs and outputs."""

import numpy as np
import pytest
from common import PARAMETERS

import minigan as mg
from minigan import models


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    networks = models.build(name)
    assert tuple(sum(p.size for p in network.parameters()) for network in networks) == PARAMETERS[name]


def test_parameters_come_in_the_order_of_the_layers() -> None:
    generator, _ = models.build("cats", image_size=16, base_channels=1)
    names = [name for name, _ in generator.named_parameters()]
    assert names[:6] == ["0.weight", "0.bias", "3.weight", "3.bias", "4.gamma", "4.beta"]
    assert names[-2:] == ["15.weight", "15.bias"]


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("size", [32, (48, 16)])
def test_other_sizes(name: str, size: int | tuple[int, int]) -> None:
    mg.manual_seed(0)
    generator, discriminator = models.build(name, image_size=size, base_channels=2, z_size=5)
    height, width = (size, size) if isinstance(size, int) else size
    z = generator.noise(3)
    assert z.shape == (3, *generator.z_shape)
    assert z.shape[-1] == 5
    images = generator(z)
    assert images.shape == (3, height, width, 3)
    judged = discriminator(images)
    assert judged.shape == ((3, height, width, 3) if name == "began" else (3, 1))
    assert np.isfinite(judged.numpy()).all()


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_size_that_does_not_fit_names_those_that_do(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"{'cats' if name == 'simpsons' else name}: expected an image size of mult.*100"
    ):
        models.build(name, image_size=100)


def test_unknown_system() -> None:
    with pytest.raises(ValueError, match=r"expected one of cats, .*, got 'dogs'"):
        models.build("dogs")


def test_noise_is_what_the_system_wants() -> None:
    mg.manual_seed(0)
    uniform = models.build("cats", image_size=16, base_channels=1)[0].noise(400).numpy()
    normal = models.build("anime", image_size=16, base_channels=1)[0].noise(400).numpy()
    assert -1 <= uniform.min() < -0.99
    assert 0.99 < uniform.max() <= 1
    assert abs(uniform.std() - 3**-0.5) < 0.01
    assert abs(normal.std() - 1) < 0.01
    assert normal.max() > 3


def test_an_image_depends_on_its_own_z_alone() -> None:
    mg.manual_seed(0)
    generator, _ = models.build("cats", image_size=16, base_channels=2)
    z = generator.noise(9)
    generator(z)  # moves the running statistics off their start
    together = generator.generate(z, batch_size=4)
    alone = np.concatenate([generator.generate(z[i : i + 1]) for i in range(9)])
    assert together.dtype == np.uint8
    # The pixels are rounded to whole numbers after sums in another order.
    assert np.abs(together.astype(int) - alone).max() <= 1
    assert generator.training


def test_pixels_of_began_are_clipped_to_their_range() -> None:
    generator, _ = models.build("began", image_size=8, base_channels=2, z_size=3)
    generator.load_state_dict({n: np.full_like(v, 3.0) for n, v in generator.state_dict().items()})
    images = generator.generate(mg.tensor(np.ones((1, 3), np.float32)))
    assert images.min() == 255
