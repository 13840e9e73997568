"""--tensorboard: what is in the event files, read as TensorBoard reads them."""

import io
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import assert_same_state
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

Train = Callable[..., None]


def masked_crc(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(folder: str) -> Iterator[Event]:
    """All events of a run, file by file. A record: its length, a checksum of that, the event, a checksum of that."""
    for path in sorted(Path(folder, "tensorboard").glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while content:
            length, crc_of_length = struct.unpack("<QI", content[:12])
            record, (crc,) = content[12 : 12 + length], struct.unpack("<I", content[12 + length : 16 + length])
            assert (crc_of_length, crc) == (masked_crc(content[:8]), masked_crc(record))
            yield Event.FromString(record)
            content = content[16 + length :]


def shown(folder: str) -> tuple[dict[str, dict[int, float]], dict[int, np.ndarray]]:
    """The scalars by name and step, and the pictures by step, of what no later session has purged."""
    scalars: dict[str, dict[int, float]] = {}
    pictures: dict[int, np.ndarray] = {}
    for event in events(folder):
        if event.session_log.status == SessionLog.START:
            for series in (*scalars.values(), pictures):
                for step in [step for step in series if step >= event.step]:
                    del series[step]
        for value in event.summary.value:
            if value.HasField("image"):
                assert value.tag == "samples"
                pictures[event.step] = np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))
            else:
                scalars.setdefault(value.tag, {})[event.step] = value.simple_value
    return scalars, pictures


def test_losses_speed_answers_scores_and_samples_can_be_watched(train_example: Train) -> None:
    train_example("cats", "--out", "run", "--quiet", "--tensorboard", "--metrics-every", "3")
    assert not [thread for thread in threading.enumerate() if "EventLogger" in type(thread).__name__]
    scalars, pictures = shown("run")
    head, *lines = (line.split(",") for line in Path("run/log.csv").read_text().splitlines())
    for i, name in enumerate(head):
        if name not in ("step", "epoch", "batch"):
            assert list(scalars[name]) == list(range(1, 8))
            assert list(scalars[name].values()) == pytest.approx([float(line[i]) for line in lines], rel=1e-5)
    assert {"loss_discriminator", "loss_generator", "d_real", "d_fake", "images_per_second"} <= scalars.keys()
    assert {name: list(scalars[name]) for name in ("swd", "ms_ssim")} == {"swd": [3, 6], "ms_ssim": [3, 6]}
    assert sorted(pictures) == [0, 7]
    for step, picture in pictures.items():
        assert np.array_equal(picture, np.asarray(Image.open(f"run/samples/{step:06d}.png")))
    train_example("cats", "--out", "plain", "--quiet", "--metrics-every", "3")
    assert_same_state("run", "plain")


def wait_for_the_next_second() -> None:
    """By which tensorboardX names its files; no two sessions of networks that are not tiny begin in the same."""
    time.sleep(1 - time.time() % 1)


def test_after_going_back_only_the_new_story_is_shown(train_example: Train) -> None:
    train_example("cats", "--out", "run", "--quiet", "--tensorboard", "--steps", "3")
    wait_for_the_next_second()
    train_example("cats", "--out", "run", "--quiet", "--tensorboard", "--resume", "--steps", "7")
    old, _ = shown("run")
    wait_for_the_next_second()
    back = ["--resume", "--from", "3", "--seed", "9", "--steps", "5"]
    train_example("cats", "--out", "run", "--quiet", "--tensorboard", *back)
    new, pictures = shown("run")
    assert list(new["loss_generator"]) == [1, 2, 3, 4, 5]
    same = [old["loss_generator"][step] == value for step, value in new["loss_generator"].items()]
    assert same == [True, True, True, False, False]
    assert sorted(pictures) == [0, 3, 5]


def test_a_resumed_run_is_watched_until_it_is_told_not_to(train_example: Train) -> None:
    train_example("cats", "--out", "run", "--quiet", "--tensorboard", "--steps", "2")
    wait_for_the_next_second()
    train_example("cats", "--out", "run", "--quiet", "--resume", "--steps", "4")
    wait_for_the_next_second()
    train_example("cats", "--out", "run", "--quiet", "--no-tensorboard", "--resume", "--steps", "5")
    train_example("cats", "--out", "run", "--quiet", "--resume", "--steps", "6")
    assert list(shown("run")[0]["loss_generator"]) == [1, 2, 3, 4]


def test_without_tensorboardx_one_line_says_what_to_install(
    train_example: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(SystemExit) as refused:
        train_example("cats", "--out", "run", "--tensorboard")
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert error == (
        "dcgan_cats.py: error: --tensorboard: tensorboardX is not installed: pip install 'minigan[watch]'\n"
    )
    assert not Path("run").exists()
