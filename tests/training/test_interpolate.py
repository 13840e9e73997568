"""Walks through the space of z: where they begin and end, how long z stays, and the files that show them."""

import io
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import minigan as mg
from minigan import serialization
from minigan.__main__ import main
from minigan.models import Generator
from minigan.training import load_generator, pictures
from minigan.training.latent import closed_path, slerp

T = np.linspace(0, 1, 9)


def angles(path: np.ndarray) -> np.ndarray:
    """Between each point and the next."""
    units = path / np.linalg.norm(path, axis=1, keepdims=True)
    return np.arccos((units[1:] * units[:-1]).sum(1).clip(-1, 1))


@pytest.mark.parametrize("shape", [(2,), (100,), (1, 1, 64)])
def test_ends_are_exact_and_shape_and_dtype_stay(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
        path = slerp(a, b, T)
        assert path.shape == (9, *shape)
        assert path.dtype == np.float32
        assert np.array_equal(path[0], a)
        assert np.array_equal(path[-1], b)


def test_the_norm_goes_evenly_and_the_direction_turns_evenly() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal(100), 3 * rng.uniform(-1, 1, 100)
    path = slerp(a, b, T)
    norms = np.linalg.norm(path, axis=1)
    np.testing.assert_allclose(norms, np.linspace(np.linalg.norm(a), np.linalg.norm(b), 9), rtol=1e-12)
    np.testing.assert_allclose(angles(path), angles(np.stack([a, b]))[0] / 8, rtol=1e-6)
    # All in the plane of a and b.
    assert np.linalg.matrix_rank(np.vstack([path, a, b]), tol=1e-9) == 2


def test_a_quarter_of_a_circle_is_what_it_is_known_to_be() -> None:
    path = slerp(np.array([2.0, 0.0]), np.array([0.0, 2.0]), np.array([0.5, 1 / 3]))
    np.testing.assert_allclose(path, [[2**0.5, 2**0.5], [3**0.5, 1]], rtol=1e-14)


@pytest.mark.parametrize("size", [2, 3, 100])
def test_opposite_points_are_joined_by_half_a_circle(size: int) -> None:
    a = np.random.default_rng(2).standard_normal(size)
    for b in (-a, -2 * a, -a * (1 + 1e-12)):
        path = slerp(a, b, T)
        norms = np.linalg.norm(path, axis=1)
        np.testing.assert_allclose(norms, np.linspace(np.linalg.norm(a), np.linalg.norm(b), 9), rtol=1e-7)
        np.testing.assert_allclose(angles(path), np.pi / 8, rtol=1e-6)
        assert np.array_equal(path[-1], b)


def test_parallel_points_zeros_and_one_dimension_go_straight() -> None:
    a, zero = np.random.default_rng(3).standard_normal(5), np.zeros(5)
    for start, end in ((a, a), (a, 3 * a), (zero, a), (a, zero), (zero, zero), (a, a * (1 + 1e-12))):
        straight = start + T[:, None] * (end - start)
        np.testing.assert_allclose(slerp(start, end, T), straight, rtol=0, atol=1e-10)
    one_dimension = slerp(np.array([1.0]), np.array([-1.0]), T)[:, 0]
    assert (np.diff(one_dimension) < 0).all()
    assert (one_dimension[0], one_dimension[-1]) == (1, -1)


def test_a_closed_path_goes_through_all_points_and_back() -> None:
    points = np.random.default_rng(4).standard_normal((5, 30))
    path = closed_path(points, 12)
    assert path.shape == (60, 30)
    assert np.array_equal(path[::12], points)
    steps = np.linalg.norm(np.roll(path, -1, 0) - path, axis=1)
    legs = np.linalg.norm(np.roll(points, -1, 0) - points, axis=1)
    assert (steps < np.repeat(legs, 12) / 6).all()  # no jump, not at the end of the loop either


@pytest.fixture
def run(train_cats: Callable[..., None]) -> None:
    """A finished run in the folder run; its generator gives more than one grey."""
    train_cats("--out", "run", "--quiet")
    path = Path("run/checkpoints/000007.safetensors")
    tensors, state = serialization.load_checkpoint(path)
    tensors["generator/15.weight"] *= 1000
    serialization.save_checkpoint(path, tensors, state)


@pytest.mark.usefixtures("run")
def test_a_gif_loops_and_a_png_has_a_row_for_each_leg(capsys: pytest.CaptureFixture) -> None:
    size = ["--points", "3", "--frames", "4", "--seed", "1"]
    main(["interpolate", "run", "--out", "walk.gif", *size])
    assert "walk.gif: 12 images, 4 from each of 3 points to the next" in capsys.readouterr().out
    with Image.open("walk.gif") as gif:
        assert (gif.format, gif.n_frames, gif.info["loop"]) == ("GIF", 12, 0)
        assert gif.size == (512, 512)  # 16 pixels, enlarged
        durations = []
        for i in range(gif.n_frames):
            gif.seek(i)
            durations.append(gif.info["duration"])
        assert durations == [80] * 12
    main(["interpolate", "run", "--out", "walk.png", *size])
    with Image.open("walk.png") as png:
        strip = np.asarray(png)
    columns, rows = 4 * 18 - 2, 3 * 18 - 2
    scale = round(512 / columns)
    assert strip.shape == (rows * scale, columns * scale, 3)
    # The first picture of each row is a point.
    generator = load_generator("run")
    mg.manual_seed(1)
    points = generator.generate(generator.noise(3))
    small = strip[::scale, ::scale]
    for row, image in enumerate(points):
        assert np.array_equal(small[row * 18 : row * 18 + 16, :16], image)
    assert len({image.tobytes() for image in points}) == 3


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("named", ["run", "run/checkpoints/000007.safetensors"])
def test_without_a_name_it_is_a_gif_in_the_run_s_folder_and_written_anew(
    named: str, capsys: pytest.CaptureFixture
) -> None:
    for seed in ("0", "1"):
        main(["interpolate", named, "--points", "2", "--frames", "2", "--seed", seed])
        assert f"{Path('run/interpolation.gif')}: 4 images" in capsys.readouterr().out
        main(["interpolate", named, "--points", "2", "--frames", "2", "--seed", seed, "--out", f"{seed}.gif"])
        assert Path("run/interpolation.gif").read_bytes() == Path(f"{seed}.gif").read_bytes()
    assert Path("0.gif").read_bytes() != Path("1.gif").read_bytes()


@pytest.mark.usefixtures("run")
def test_the_same_seed_gives_the_same_walk() -> None:
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        main(["interpolate", "run", "--out", f"{name}.png", "--points", "2", "--frames", "2", "--seed", seed])
    a, b, c = (Path(f"{name}.png").read_bytes() for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.usefixtures("run")
def test_many_images_are_drawn_in_batches_and_a_terminal_sees_how_far(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    drawn, generate = [], Generator.generate

    def counted(generator: Generator, z: mg.Tensor) -> np.ndarray:
        drawn.append(len(z))
        return generate(generator, z)

    monkeypatch.setattr(Generator, "generate", counted)
    commands = (
        ["generate", "run", "--count", "130", "--out"],
        ["interpolate", "run", "--points", "13", "--frames", "10", "--out"],
    )
    for i, (arguments, stream, words) in enumerate(
        (arguments, *said) for arguments in commands for said in ((Terminal(), "/130 "), (io.StringIO(), ""))
    ):
        monkeypatch.setattr(sys, "stderr", stream)
        main([*arguments, f"{i}.png"])
        assert words in stream.getvalue()
        assert bool(stream.getvalue()) == bool(words)
    assert drawn == 4 * [64, 64, 2]


@pytest.mark.usefixtures("run")
def test_more_than_a_file_can_have_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(pictures, "MOST_BYTES", 3 * 512**2)
    for arguments, words in (
        (["interpolate", "run", "--out", "a.gif"], "a.gif: expected at most 3 images of 512 x 512 pixels in one file"),
        (
            ["generate", "run", "--count", "1025", "--out", "a.png"],
            "at most 1,024 images of 16 x 16 pixels in one",
        ),
        (
            ["interpolate", "run", "--points", "1000000"],
            "100,000 images, got --points 1,000,000 times --frames 12",
        ),
    ):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert not list(Path().glob("a.*"))
    main(["generate", "run", "--count", "1024", "--out", "a.png"])
    main(["interpolate", "run", "--points", "3", "--frames", "1", "--out", "a.gif"])


@pytest.mark.usefixtures("run")
def test_ctrl_c_ends_it_in_one_line_and_leaves_whole_pictures() -> None:
    command = [sys.executable, "-m", "minigan", "generate", "run", "--count", "50000", "--out", "many"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 60
        while not Path("many/0070.png").exists() and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        said, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, said, error) == (130, "", "stopped\n")
    made = sorted(Path("many").iterdir())
    assert len(made) > 70
    for path in made:
        with Image.open(path) as picture:  # a .part would not be one
            picture.load()
        assert path.suffix == ".png"


@pytest.mark.usefixtures("run")
def test_a_mistake_gets_one_line(capsys: pytest.CaptureFixture) -> None:
    Path("taken.gif").write_text("")
    for arguments, words in (
        (["run", "--out", "walk.jpg"], "--out: expected the name of a new .gif or .png file, got walk.jpg"),
        (["run", "--out", "taken.gif"], "--out: expected the name of a new .gif or .png file, got taken.gif"),
        (["run", "--out", "nowhere/a.gif"], "nowhere/a.gif: cannot be written: No such file or directory"),
        (["run", "--out", "nowhere/a.png"], "nowhere/a.png: cannot be written: No such file or directory"),
        (["nowhere", "--out", "a.gif"], "nowhere: expected a run's folder"),
        (["run", "--out", "a.gif", "--points", "1"], "expected --points from 2"),
        (["run", "--out", "a.gif", "--frames", "0"], "expected --points from 2, --frames from 1"),
        (["run", "--out", "a.gif", "--seed", "-1"], "--seed from 0"),
        (["run", "--out", "a.gif", "--device", "tpu"], "unknown device 'tpu'"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["interpolate", *arguments])
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert not list(Path().glob("a.*"))


@pytest.mark.parametrize("command", ["doctor", "data", "data cats", "generate", "interpolate", "export", "report"])
def test_each_command_says_in_a_sentence_what_it_does(command: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    usage, sentence, *_ = capsys.readouterr().out.split("\n\n")
    assert usage.startswith(f"usage: python -m minigan {command} ")
    assert " " in sentence
    assert sentence.endswith(".")


def test_the_command_is_named_as_it_is_called() -> None:
    done = subprocess.run([sys.executable, "-m", "minigan", "interpolate"], capture_output=True, text=True)
    assert done.stderr.startswith("python -m minigan: error: ")
    assert done.returncode == 2
