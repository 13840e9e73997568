"""The cats example from its command line: what it leaves behind, and how it answers mistakes."""

import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from minigan.kernels.emulator import executor
from PIL import Image

from minigan import serialization
from minigan.training import Epochs, command_line, load_generator

Train = Callable[..., None]


def test_the_paper_preset_is_the_article(cats: ModuleType) -> None:
    paper = cats.PRESETS["paper"]
    assert (paper.image_size, paper.base_channels, paper.z_size, paper.batch_size) == ((128, 128), 64, 100, 64)
    assert (paper.lr_discriminator, paper.lr_generator, paper.beta1, paper.smooth) == (5e-5, 2e-4, 0.5, 0.1)
    assert isinstance(paper.steps, Epochs)
    assert paper.steps == 215
    assert paper.sample_every == 10
    assert isinstance(paper.checkpoint_every, Epochs)
    assert paper.checkpoint_every == 5


def test_a_run_leaves_a_log_samples_checkpoint_film_and_configuration(
    train_cats: Train, capsys: pytest.CaptureFixture
) -> None:
    train_cats("--seed", "3")
    folder = Path("runs/cats-0001")
    rows = list(csv.DictReader((folder / "log.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == list(range(1, 8))
    assert [int(row["epoch"]) for row in rows] == [0] * 5 + [1] * 2  # 21 pictures: 5 batches of 4, the last dropped
    assert all(np.isfinite(float(row[name])) for row in rows for name in ("loss_discriminator", "loss_generator"))
    with Image.open(folder / "samples" / "000007.png") as grid:
        assert grid.width >= 500
        assert grid.convert("L").getextrema() != (0, 0)
    with Image.open(folder / "progress.gif") as film:
        assert film.n_frames == 2
    with Image.open(folder / "losses.png") as plot:
        assert plot.format == "PNG"
    config = json.loads((folder / "config.json").read_text())
    assert (config["seed"], config["preset"], config["images"]) == (3, "small", 21)
    assert config["settings"]["base_channels"] == 2
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["000007.safetensors"]
    said = capsys.readouterr().out
    assert "21 images from pictures" in said
    assert "sliced Wasserstein distance" in said
    train_cats("--quiet")
    assert capsys.readouterr().out == ""
    assert Path("runs/cats-0002/log.csv").exists()


def test_a_run_needs_no_git(train_cats: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    train_cats("--steps", "1", "--out", "run")
    assert json.loads(Path("run/config.json").read_text())["git_commit"] is None


def test_the_same_seed_gives_the_same_run_and_another_another(train_cats: Train) -> None:
    for out, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        train_cats("--out", out, "--seed", seed, "--quiet")
    a, b, c = (serialization.load_checkpoint(Path(out) / "checkpoints" / "000007.safetensors")[0] for out in "abc")
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not np.array_equal(a["generator/0.weight"], c["generator/0.weight"])


def test_resuming_is_bit_exact_in_the_middle_of_an_epoch_too(train_cats: Train) -> None:
    train_cats("--out", "whole", "--quiet", "--steps", "8")
    train_cats("--out", "parts", "--quiet", "--steps", "2")
    for steps in ("3", "6", "8"):
        train_cats("--out", "parts", "--quiet", "--steps", steps, "--resume")
    whole, parts = (
        serialization.load_checkpoint(Path(out) / "checkpoints" / "000008.safetensors") for out in ("whole", "parts")
    )
    # What was seen of its health differs: each stop drew one more grid.
    assert {**whole[1], "health": None} == {**parts[1], "health": None}
    assert whole[0].keys() == parts[0].keys()
    assert all(np.array_equal(whole[0][name], parts[0][name]) for name in whole[0])
    logs = [
        [row[:4] for row in csv.reader((Path(out) / "log.csv").read_text().splitlines())] for out in ("whole", "parts")
    ]
    assert logs[0] == logs[1]


def test_a_resume_writes_the_lines_after_its_checkpoint_again(train_cats: Train) -> None:
    train_cats("--out", "run", "--quiet", "--steps", "3")
    log = Path("run/log.csv")
    before = log.read_text()
    log.write_text(before + "4,0,9,9,9\n5,0,9,")  # as a run that was killed after its checkpoint leaves it
    train_cats("--out", "run", "--quiet", "--steps", "5", "--resume")
    lines = log.read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "1", "2", "3", "4", "5"]
    assert "\n".join(lines).startswith(before.strip())
    assert ",9,9" not in log.read_text()


def test_resume_without_out_goes_on_with_the_latest_run(train_cats: Train, capsys: pytest.CaptureFixture) -> None:
    train_cats("--steps", "1")
    train_cats("--steps", "1")
    train_cats("--steps", "2", "--resume")
    assert "runs/cats-0002: steps 2 to 2 of 4 images" in capsys.readouterr().out
    assert not Path("runs/cats-0003").exists()


def test_only_the_last_checkpoints_are_kept(
    train_cats: Train, cats: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    monkeypatch.setitem(cats.PRESETS, "small", dataclasses.replace(cats.PRESETS["small"], checkpoint_every=1))
    train_cats("--out", "run", "--quiet")
    assert sorted(p.stem for p in Path("run/checkpoints").iterdir()) == ["000005", "000006", "000007"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_sets_the_exit_code(
    train_cats: Train,
    cats: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    capsys: pytest.CaptureFixture,
) -> None:
    step = cats.Cats.step
    calls = []

    def interrupted(self: object, real: object) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return step(self, real)

    before = signal.getsignal(number)
    monkeypatch.setattr(cats.Cats, "step", interrupted)
    with pytest.raises(SystemExit) as end:
        train_cats("--out", "run")
    assert end.value.code == 128 + number
    assert signal.getsignal(number) == before
    assert Path("run/checkpoints/000003.safetensors").exists()
    assert "stopped after step 3" in capsys.readouterr().out
    train_cats("--out", "run", "--resume", "--quiet")
    train_cats("--out", "whole", "--quiet")
    run, whole = (
        serialization.load_checkpoint(Path(out) / "checkpoints" / "000007.safetensors")[0] for out in ("run", "whole")
    )
    assert all(np.array_equal(run[name], whole[name]) for name in run)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], r"--steps: expected a whole number from 1, got '0'"),
        (["--steps", "many"], r"--steps: expected a whole number from 1, got 'many'"),
        (["--batch-size", "-1"], r"--batch-size: expected a whole number from 1, got '-1'"),
        (["--seed", "x"], r"--seed: expected a whole number from 0, below 2\^63, got 'x'"),
        (["--seed", str(2**63)], r"--seed: expected a whole number from 0, below 2\^63, got"),
        (
            ["--image-size", "12y"],
            r"--image-size: expected a number such as 64, or HEIGHTxWIDTH such as 64x48, got '12y'",
        ),
        (["--image-size", "30"], r"cats: expected an image size of multiples of 16 \(such as 32\), got 30 x 30"),
        (["--preset", "large"], r"--preset: invalid choice: 'large'"),
        (["--device", "tpu"], r"--device: unknown device 'tpu': expected 'cpu', 'cuda', 'cuda:N' or 'emulated'"),
        (["--data", "nowhere"], r"nowhere"),
        (["--batch-size", "99"], r"21 .*99"),
        (["--resume"], r"--resume: there is no run runs/cats-NNNN here"),
        (["--resume", "--out", "nothing"], r"--resume: no run with a checkpoint in nothing"),
        # Before the images are read, which may take minutes.
        (["--resume", "--out", "nothing", "--data", "nowhere"], r"--resume: no run with a checkpoint in nothing"),
        (["--out", "pictures/run"], r"--out: pictures/run lies in --data"),
        (["--data", "."], r"--out: runs lies in --data \., where samples would be taken for images"),
        (["--leave-out", "nowhere"], r"nowhere, the list of files to leave out, cannot be read: No such file or dir"),
        (["--out", "pictures"], r"--out: pictures is not empty"),
        (["--out", "pictures/0.png"], r"--out: pictures/0.png is not empty|--out: .*cannot be written"),
        (["--colour"], r"unrecognized arguments: --colour"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing_behind(
    train_cats: Train, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    import re

    before = sorted(p for p in Path().rglob("*") if "cache" not in p.parts)
    with pytest.raises(SystemExit) as end:
        train_cats(*arguments)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.startswith("dcgan_cats.py: error: ")
    assert error.count("\n") == 1
    assert len(error) < 300
    assert sorted(p for p in Path().rglob("*") if "cache" not in p.parts) == before


def test_a_device_that_is_not_there_is_blamed_on_who_named_it(
    train_cats: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("MINIGAN_DEVICE", "tpu")
    for arguments, words in (([], "MINIGAN_DEVICE: unknown device 'tpu'"), (["--device", "gpu"], "--device: unknown")):
        with pytest.raises(SystemExit):
            train_cats(*arguments)
        assert capsys.readouterr().err.startswith(f"dcgan_cats.py: error: {words}")


def test_resume_refuses_another_configuration_and_names_it(train_cats: Train, capsys: pytest.CaptureFixture) -> None:
    train_cats("--out", "run", "--quiet", "--steps", "2")
    for arguments, words in (
        (["--batch-size", "5"], "batch_size was 4, now is 5"),
        (["--seed", "1"], "seed was 0, now is 1"),
        (["--image-size", "32"], "image_size was [16, 16], now is [32, 32]"),
    ):
        with pytest.raises(SystemExit) as end:
            train_cats("--out", "run", "--resume", *arguments)
        assert end.value.code == 2
        assert words in capsys.readouterr().err


def test_resume_says_so_when_there_is_nothing_left_to_do(train_cats: Train, capsys: pytest.CaptureFixture) -> None:
    train_cats("--out", "run", "--quiet")
    train_cats("--out", "run", "--resume")
    assert "all 7 steps are done, 7 in all; --steps N, from 8 on, trains longer" in capsys.readouterr().out
    train_cats("--out", "run", "--resume", "--steps", "3")
    assert "all 3 steps are done, 7 in all" in capsys.readouterr().out
    assert json.loads(Path("run/config.json").read_text())["planned_steps"] == 7


def test_a_resumed_run_keeps_and_measures_as_before(
    train_cats: Train, cats: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    monkeypatch.setitem(cats.PRESETS, "small", dataclasses.replace(cats.PRESETS["small"], checkpoint_every=1))
    train_cats("--out", "run", "--quiet", "--steps", "5", "--keep", "6", "--metrics-every", "2")
    train_cats("--out", "run", "--quiet", "--steps", "6", "--resume")
    assert [p.stem for p in sorted(Path("run/checkpoints").glob("[0-9]*"))] == [f"{i:06d}" for i in range(1, 7)]
    assert [line.split(",")[0] for line in Path("run/metrics.csv").read_text().split()] == ["step", "2", "4", "6"]
    train_cats("--out", "run", "--quiet", "--steps", "7", "--resume", "--keep", "2")
    assert [p.stem for p in sorted(Path("run/checkpoints").glob("[0-9]*"))] == ["000006", "000007"]


def test_resume_refuses_another_number_of_images(
    train_cats: Train, pictures: Path, capsys: pytest.CaptureFixture
) -> None:
    train_cats("--out", "run", "--quiet", "--steps", "2")
    (pictures / "21.png").write_bytes((pictures / "20.png").read_bytes())
    with pytest.raises(SystemExit) as end:
        train_cats("--out", "run", "--quiet", "--resume", "--steps", "3")
    assert end.value.code == 2
    assert "there were 21 images, and now there are 22" in capsys.readouterr().err


def test_resume_refuses_a_damaged_checkpoint(train_cats: Train, capsys: pytest.CaptureFixture) -> None:
    train_cats("--out", "run", "--quiet")
    path = Path("run/checkpoints/000007.safetensors")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(SystemExit) as end:
        train_cats("--out", "run", "--resume", "--steps", "9")
    assert end.value.code == 2
    assert "damaged" in capsys.readouterr().err


def test_generating_from_a_finished_run(train_cats: Train, capsys: pytest.CaptureFixture) -> None:
    from minigan.__main__ import main

    train_cats("--out", "run", "--quiet")
    path = Path("run/checkpoints/000007.safetensors")
    tensors, state = serialization.load_checkpoint(path)
    tensors["generator/15.weight"] *= 1000  # after seven steps its images are all of one grey
    serialization.save_checkpoint(path, tensors, state)
    generator = load_generator("run")
    assert generator.generate(generator.noise(3)).shape == (3, 16, 16, 3)
    main(["generate", "run", "--count", "5", "--grid", "3x2", "--out", "five.png"])
    main(["generate", "run", "--count", "5", "--grid", "3x2", "--out", "same.png", "--seed", "0"])
    main(["generate", "run", "--count", "5", "--grid", "3x2", "--out", "other.png", "--seed", "1"])
    five, same, other = (np.asarray(Image.open(name)) for name in ("five.png", "same.png", "other.png"))
    assert np.array_equal(five, same)
    assert not np.array_equal(five, other)
    for count, columns, rows in ((1, 1, 1), (2, 2, 1), (5, 3, 2)):  # a .png is one picture, without --grid, too
        main(["generate", "run", "--count", str(count), "--out", f"{count}.PNG"])
        main(["generate", "run", "--count", str(count), "--grid", f"{columns}x{rows}", "--out", f"grid{count}.png"])
        assert Path(f"{count}.PNG").read_bytes() == Path(f"grid{count}.png").read_bytes()
    main(["generate", "run", "--count", "3", "--out", "single"])
    assert sorted(p.name for p in Path("single").iterdir()) == ["0000.png", "0001.png", "0002.png"]
    for arguments, words in (
        (["nowhere", "--out", "x.png"], "nowhere: expected a run's folder"),
        (["run", "--out", "single"], "expected a new or empty folder"),
        (["run", "--out", "five.png", "--grid", "8x8"], "expected the name of a new .png file"),
        (["run", "--out", "five.png"], "expected the name of a new .png file"),
        (["run", "--out", "x.png", "--grid", "2x2"], "with room for 64 images"),
        (["run", "--out", "x.jpg"], "expected a .png for one picture, or a folder, got x.jpg"),
        (["run/log.csv", "--out", "x.png"], "run/log.csv: expected a run's folder or a checkpoint"),
        (["run", "--out", "x", "--count", "0"], "expected --count from 1"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["generate", *arguments])
        assert end.value.code == 2
        assert words in capsys.readouterr().err


def test_doctor_names_devices_and_libraries(capsys: pytest.CaptureFixture) -> None:
    from minigan.__main__ import main

    main([])
    said = capsys.readouterr().out
    assert "default device: " in said
    assert "cuda: " in said
    assert "emulated: available, with /" in said
    assert "safetensors 0" in said


def test_what_the_emulator_lacks_is_said_in_one_line(
    train_cats: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from minigan.__main__ import main

    monkeypatch.setattr(executor, "_built", {})  # as in a new process
    for name, value, words in (
        ("CXX", "no-such-compiler", "the emulator needs a C++ compiler"),
        (
            "MINIGAN_CACHE",
            "/dev/null/x",
            "compiled kernels cannot be written to /dev/null/x/emulator: Not a dir",
        ),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(SystemExit) as end:
                train_cats("--out", name, "--quiet", "--device", "emulated")
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith(f"dcgan_cats.py: error: {words}")
        assert error.count("\n") == 1
    monkeypatch.setenv("CXX", "no-such-compiler")
    main(["doctor"])
    assert "emulated: the emulator needs a C++ compiler" in capsys.readouterr().out


@pytest.mark.usefixtures("noise_of_the_cpu")
def test_the_emulated_device_trains_as_the_cpu_does(train_cats: Train) -> None:
    # Every CUDA kernel of a step, and the code that launches it, without a GPU; batches gathered by a kernel.
    train_cats("--out", "cpu", "--quiet", "--steps", "2", "--device", "cpu")
    train_cats("--out", "emulated", "--quiet", "--steps", "2", "--device", "emulated")
    logs = [
        [
            [float(value) for value in row[2:4]]
            for row in list(csv.reader((Path(out) / "log.csv").read_text().splitlines()))[1:]
        ]
        for out in ("cpu", "emulated")
    ]
    np.testing.assert_allclose(logs[0], logs[1], rtol=1e-4)


def test_networks_that_do_not_fit_into_memory_are_the_size_s_fault(
    train_cats: Train, cats: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(cats.Cats, "__init__", exhausted)
    with pytest.raises(SystemExit) as end:
        train_cats("--out", "run", "--quiet")
    assert end.value.code == 2
    assert "--image-size: networks for 16 x 16 pixels do not fit into the memory of device cpu; try a smaller one" in (
        capsys.readouterr().err
    )


def test_leaving_out_needs_data(cats: ModuleType, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        command_line("cats", cats.__doc__, cats.PRESETS, ["--leave-out", "unwanted.txt"])
    assert end.value.code == 2
    assert "--leave-out: expected --data with it" in capsys.readouterr().err


def test_a_number_of_threads_that_is_none_is_said_in_one_line(
    train_cats: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from minigan.__main__ import main

    monkeypatch.setenv("MINIGAN_NUM_THREADS", "many")
    with pytest.raises(SystemExit) as end:
        train_cats()
    assert end.value.code == 2
    words = "MINIGAN_NUM_THREADS: expected a whole number from 1, got 'many'"
    assert capsys.readouterr().err == f"dcgan_cats.py: error: {words}\n"
    main([])
    assert f"cpu: {words}" in capsys.readouterr().out


def test_running_out_of_memory_names_a_batch_size_to_try(
    train_cats: Train, cats: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def exhausted(self: object, real: object) -> dict[str, float]:
        raise MemoryError

    monkeypatch.setattr(cats.Cats, "step", exhausted)
    with pytest.raises(SystemExit) as end:
        train_cats("--out", "run", "--quiet")
    assert end.value.code == 2
    assert "--batch-size: 4 images a step do not fit into the memory of device cpu; try --batch-size 2" in (
        capsys.readouterr().err
    )
