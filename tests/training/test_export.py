"""Generators as ONNX: valid, and the same images as minigan's in ONNX Runtime."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import minigan as mg
from minigan import models, nn
from minigan.__main__ import main
from minigan.onnx_export import OPSET, onnx_model
from minigan.training import load_generator
from minigan.training.errors import UserError

SYSTEMS = ["cats", "simpsons", "anime", "maxpool", "began"]


def randomised(generator: models.Generator) -> models.Generator:
    """Biases, betas, gammas and running statistics that are not zeros and ones, as after training."""
    rng = np.random.default_rng(0)
    state = generator.state_dict()
    for name, value in state.items():
        kind = name.rpartition(".")[2]
        if kind in ("gamma", "running_var"):
            state[name] = rng.uniform(0.5, 2, value.shape).astype(np.float32)
        elif kind != "weight":
            state[name] = rng.normal(0, 0.3, value.shape).astype(np.float32)
        elif value.std() < 0.05:  # weights of deviation 0.02 would leave grey
            state[name] = value * np.float32(4)
    generator.load_state_dict(state)
    return generator


def evaluated(generator: models.Generator, z: mg.Tensor) -> np.ndarray:
    """What the model has to give, from minigan."""
    generator.eval()
    with mg.no_grad():
        images = generator(z).numpy()
    generator.train()
    return images.clip(*generator.pixels)


def run_onnx(model: onnx.ModelProto, z: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (images,) = session.run(["images"], {"z": z})
    return images


def assert_same(generator: models.Generator, model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    for count in (1, 5):
        z = generator.noise(count)
        expected, got = evaluated(generator, z), run_onnx(model, z.numpy())
        assert got.shape == expected.shape
        assert got.dtype == np.float32
        assert expected.std() > 0.05
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [32, (32, 48)])
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_same_images_in_onnx_runtime(system: str, size: int | tuple[int, int]) -> None:
    mg.manual_seed(0)
    generator = randomised(models.build(system, image_size=size, base_channels=4)[0])
    model = onnx_model(generator, "run-0001", system)
    assert_same(generator, model)
    operators = [node.op_type for node in model.graph.node]
    # One transposition into ONNX's order and one out of it.
    assert operators.count("Transpose") == 2
    assert operators[-1] == "Transpose"


def test_began_is_clipped_to_its_range_of_pixels() -> None:
    mg.manual_seed(0)
    generator = randomised(models.build("began", image_size=16, base_channels=4)[0])
    z = generator.noise(3)
    with mg.no_grad():
        assert generator(z).numpy().min() < 0
    images = run_onnx(onnx_model(generator, "r", "began"), z.numpy())
    assert (images.min(), images.max() <= 1) == (0, True)


# What the five generators do not use, but their layers can do.
LAYERS = {
    "strides that differ, kernel below the stride": [
        nn.ConvTranspose2d(5, 4, (2, 1), stride=(2, 3), padding="same"),
        nn.ConvTranspose2d(4, 3, (4, 5), stride=(3, 2), padding="same"),
    ],
    "output padding": [nn.ConvTranspose2d(5, 3, 3, stride=2, padding=1, output_padding=(1, 0), bias=False)],
    "uneven padding": [nn.ConvTranspose2d(5, 3, (5, 4), stride=2, padding=((0, 2), (3, 1)))],
    "strided convolutions": [
        nn.UpsampleNearest2d(3),
        nn.Conv2d(5, 4, (4, 5), stride=(2, 3), padding="same"),
        nn.Conv2d(4, 3, 2, stride=2, padding=((1, 0), (2, 3)), bias=False),
    ],
    "rows dropped": [nn.UpsampleNearest2d(2), nn.Conv2d(5, 3, 2, stride=3, padding="valid")],
    "reshape of an image": [nn.ELU(0.5), nn.Reshape(6, 2, 5), nn.Conv2d(5, 3, 1)],
}


@pytest.mark.parametrize("name", LAYERS)
def test_other_paddings_and_shapes(name: str) -> None:
    mg.manual_seed(0)
    generator = models.Generator(*LAYERS[name], z_shape=(3, 4, 5), normal=True, pixels=(-2.0, 3.0))
    assert_same(generator, onnx_model(generator, "r", "other"))


def test_a_generator_in_training_is_exported_as_in_evaluation_and_stays_as_it_was() -> None:
    mg.manual_seed(0)
    generator = randomised(models.build("anime", image_size=16, base_channels=2)[0])
    before = generator.state_dict()
    assert_same(generator, onnx_model(generator, "r", "anime"))
    assert generator.training
    assert all(np.array_equal(before[name], value) for name, value in generator.state_dict().items())


def test_metadata_and_versions() -> None:
    for system, z, shape in (
        ("anime", "normal, mean 0, deviation 1", [1, 1, 100]),
        ("began", "uniform in (-1, 1)", [64]),
    ):
        model = onnx_model(models.build(system, image_size=16, base_channels=1)[0], "run-0007", system)
        details = {entry.key: entry.value for entry in model.metadata_props}
        assert details == {
            "name": "run-0007",
            "system": system,
            "minigan_version": mg.__version__,
            "z": z,
            "pixels": "0 to 1" if system == "began" else "-1 to 1",
        }
        assert (model.producer_name, model.producer_version) == ("minigan", mg.__version__)
        assert [entry.version for entry in model.opset_import] == [OPSET]
        ends = [
            [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in (model.graph.input[0], model.graph.output[0])
        ]
        assert ends == [["N", *shape], ["N", 16, 16, 3]]


def test_a_layer_without_a_form_is_named() -> None:
    generator = models.Generator(nn.Linear(2, 12), nn.Sigmoid(), nn.Reshape(2, 2, 3), z_shape=(2,))
    with pytest.raises(TypeError, match=r"layer 1: expected one of .*ConvTranspose2d.*, got Sigmoid"):
        onnx_model(generator, "r", "other")


def test_without_onnx_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    generator, _ = models.build("began", image_size=8, base_channels=1)
    with pytest.raises(UserError, match=r"^onnx is not installed; install it with: pip install 'minigan\[onnx\]'$"):
        onnx_model(generator, "r", "began")


def test_exporting_a_finished_run(train_cats: Callable[..., None], capsys: pytest.CaptureFixture) -> None:
    train_cats("--out", "run", "--quiet")
    main(["export", "run", "--onnx", "cats.onnx"])
    assert "cats.onnx: z (N, 100) -> images (N, H, W, 3)" in capsys.readouterr().out
    model = onnx.load("cats.onnx")
    details = {entry.key: entry.value for entry in model.metadata_props}
    assert (details["name"], details["system"]) == ("run", "cats")
    generator = load_generator("run")
    z = generator.noise(5)
    np.testing.assert_allclose(run_onnx(model, z.numpy()), evaluated(generator, z), rtol=0, atol=1e-5)
    main(["export", "run/checkpoints/000007.safetensors", "--onnx", "again.onnx"])
    assert Path("again.onnx").read_bytes() == Path("cats.onnx").read_bytes()


def test_a_mistake_gets_one_line(train_cats: Callable[..., None], capsys: pytest.CaptureFixture) -> None:
    train_cats("--out", "run", "--quiet", "--steps", "1")
    Path("taken.onnx").write_text("")
    capsys.readouterr()
    for arguments, words in (
        (["run", "--onnx", "cats.png"], "--onnx: expected the name of a new .onnx file, got cats.png"),
        (["run", "--onnx", "taken.onnx"], "--onnx: expected the name of a new .onnx file, got taken.onnx"),
        (["run", "--onnx", "nowhere/cats.onnx"], "nowhere/cats.onnx: cannot be written: No such file or directory"),
        (["nowhere", "--onnx", "cats.onnx"], "nowhere: expected a run's folder"),
        (["run"], "required: --onnx"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["export", *arguments])
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert not Path("cats.onnx").exists()
