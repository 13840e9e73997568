"""The page about a run: that it stands alone, shows what the run has, says what it has not, and believes no file."""

import base64
import fcntl
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import minigan as mg
from minigan import serialization
from minigan.__main__ import main
from minigan.training import load_generator
from minigan.training.charts import MOST_POINTS, Panel, chart, nice_ticks, number, smoothed, thinned
from minigan.training.latent import slerp
from minigan.training.report import _hash, page, panels_of, read_columns

VOID = {"meta", "img", "input", "br", "hr", "link"}
ADDRESSES = {"src", "href", "srcset", "data", "action", "poster", "xlink:href", "background", "formaction"}
HOSTILE = "</title></script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp; onload=x"


class Page(HTMLParser):
    """A parsed page; raises AssertionError where its tags are not balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # (the innermost tag, its text)
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, tag
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.elements if t == tag and all(a.get(key) == value for key, value in wanted.items())]

    def text(self) -> str:
        return " ".join(" ".join(text for tag, text in self.texts if tag not in ("script", "style")).split())

    def frames(self) -> list[dict[str, Any]]:
        """Those in the script, the last of which is the picture itself."""
        found = [text for tag, text in self.texts if tag == "script" and text.startswith("[")]
        frames = json.loads(found[0])
        frames[-1]["src"] = self.all("img", id="frame")[0]["src"]
        return frames


def pixels(uri: str) -> np.ndarray:
    kind, _, data = uri.partition(";base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert kind == f"data:image/{str(picture.format).lower()}"
        return np.asarray(picture.convert("RGB"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder, made by hand: no checkpoint, a log of 60 lines, three samples."""
    folder = tmp_path / "cats-0001"
    (folder / "samples").mkdir(parents=True)
    settings = {"image_size": [16, 12], "batch_size": 8, "steps": 60, "beta1": 0.5}
    config = {"system": "cats", "preset": "small", "data": None, "settings": settings, "versions": {"numpy": "2.0.1"}}
    write_config(folder, **config, device="cpu", precision="float32", git_commit=None)
    rng = np.random.default_rng(0)
    losses = rng.uniform(0.5, 1.5, (60, 2))
    write_log(
        folder,
        "step,epoch,batch,loss_discriminator,loss_generator,images_per_second",
        *(f"{i + 1},0,{i},{d:.6g},{g:.6g},{4 if i < 30 else 2}" for i, (d, g) in enumerate(losses)),
    )
    for step in (0, 30, 60):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / "samples" / f"{step:06d}.png")
    return folder


def write_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**old, **changes}))


def write_log(folder: Path, *lines: str, name: str = "log.csv") -> None:
    (folder / name).write_text("".join(f"{line}\n" for line in lines))


def test_a_trained_run_has_it_all(train_cats: Callable[..., None], capsys: pytest.CaptureFixture) -> None:
    train_cats("--out", "run", "--quiet")
    main(["report", "run"])
    assert re.fullmatch(r"run/report\.html: 0\.\d MB; open it in a browser\n", capsys.readouterr().out)
    found = Page(Path("run/report.html").read_text())
    assert found.all("meta", name="viewport")
    log, _ = read_columns(Path("run/log.csv"))
    drawn = " ".join(str(svg["aria-label"]) for svg in found.all("svg", role="img"))
    assert all(name in drawn for name in log if name not in ("step", "epoch", "batch"))
    config = json.loads(Path("run/config.json").read_text())
    names = [text for tag, text in found.texts if tag == "th"]
    assert {name.replace("_", " ") for name in config["settings"]} <= set(names)
    assert {"seed", "git commit", "python", "platform", "numpy"} <= set(names)
    assert "about 1.39" in found.text()
    # The samples, as they are.
    frames = found.frames()
    assert [frame["step"] for frame in frames] == [0, 7]
    for frame in frames:
        with Image.open(f"run/samples/{frame['step']:06d}.png") as picture:
            assert np.array_equal(pixels(frame["src"]), np.asarray(picture))
    # The walk, from one random image to another.
    generator = load_generator("run", "cpu")
    mg.manual_seed(0)
    start, end = generator.noise(2).numpy()
    images = generator.generate(mg.tensor(slerp(start, end, np.linspace(0, 1, 10))))
    strip = [pixels(str(a["src"])) for a in found.all("img") if a["alt"] == ""]
    assert np.array_equal(np.stack(strip), images)
    assert found.all("div", role="img")[0]["aria-label"] == "10 images on the way from one random point to another"


def test_the_page_stands_alone_and_can_be_used_by_all(run: Path) -> None:
    text = page(run)
    assert "url(" not in text
    assert "@import" not in text
    found = Page(text)
    for tag, attributes in found.elements:
        assert tag not in {"link", "a", "iframe", "object", "embed", "base", "form"}
        for name in ADDRESSES & attributes.keys():
            assert str(attributes[name]).startswith("data:image/"), (tag, name)
    # Headings in order, one h1; each picture with a text, each control with a name.
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert all("alt" in image for image in found.all("img"))
    assert all(svg.get("aria-label") for svg in found.all("svg", **{"class": "plot"}))
    assert found.all("input")[0]["aria-label"]
    assert found.all("html")[0]["lang"] == "en"
    # Without JavaScript: the last grid, and no controls.
    assert found.all("img", id="frame")[0]["alt"] == "Grid of samples at step 60"
    assert "hidden" in found.all("div", id="controls")[0]
    # Names that the script and the labels use are there, once.
    ids = [a["id"] for _, a in found.elements if "id" in a]
    assert len(ids) == len(set(ids))
    script = next(text for tag, text in found.texts if tag == "script" and "use strict" in text)
    assert set(re.findall(r'getElementById\("(\w+)"\)', script)) <= set(ids)
    assert {a["aria-labelledby"] for a in found.all("section")} <= set(ids)


def test_no_text_from_a_file_becomes_markup(run: Path) -> None:
    settings = {HOSTILE: HOSTILE, "batch_size": HOSTILE, "image_size": [HOSTILE, "\ud800"]}
    write_config(run, system=HOSTILE, preset=HOSTILE, settings=settings, versions={HOSTILE: HOSTILE}, **{HOSTILE: 1})
    write_config(run, device=HOSTILE, precision=HOSTILE, started=HOSTILE, data=HOSTILE, git_commit={HOSTILE: HOSTILE})
    write_log(run, f"step,loss_{HOSTILE},{HOSTILE}", "1,0.5,nan", "2,1e9,0.25")
    write_log(run, f"step,{HOSTILE}", "1,0.5", "2,nan", name="metrics.csv")
    (run / "health.log").write_text(f"step {HOSTILE}: {HOSTILE}\n{HOSTILE}\n\udcff", errors="surrogateescape")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "000060.safetensors").write_bytes(HOSTILE.encode())
    folder = run.rename(run.with_name(HOSTILE.replace("/", "∕")))
    main(["report", str(folder)])
    found = Page((folder / "report.html").read_text("utf-8"))
    scripts = [text for tag, text in found.texts if tag == "script"]
    assert len(found.all("script")) == len(scripts) == 2
    assert not found.all("img", src="x")
    assert not [a for _, a in found.elements for name in a if name.startswith("on")]
    assert len(found.all("title")) == 1
    # The text itself is there, as text: title, heading, health, captions, tables.
    assert {"title", "h1", "p", "b", "li", "figcaption", "th", "td"} <= {
        tag for tag, text in found.texts if "<img src=x onerror=alert(2)>" in text
    }
    # And should something get through all the same: the policy allows this script alone.
    policy = found.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert f"script-src '{_hash(scripts[1])}'" in str(policy)
    assert "default-src 'none'" in str(policy)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "There are no charts: log.csv is not there yet"),
        ("", "log.csv has no line that can be read yet"),
        ("step,loss_real\n", "log.csv has no line that can be read yet"),
        ("step,loss_real\n1,0.5", "log.csv has no line that can be read yet"),
        ("step,loss_real\n1,0.5\n2,0.", "1 step, not running"),
        ("step,loss_real\n1,0.5\n", "means over 1 line of it"),
        ("step,loss_real\n1,0.5\nx,1\n2\n-3,1\nnan,1\n", "4 lines of log.csv could not be read"),
        ("step,loss_real\n1,nan\n", "step 1: loss_real is nan in the log"),
        ("step,loss_real\n1,nan\n2,inf\n3,-inf\n4,1\n", "step 1: loss_real is nan in the log, and in 2 more lines"),
        ("step,loss_real\n1,1e300\n2,1\n", "step 1: loss_real is 1e+300 in the log"),
        ("step,images_per_second\n1,0\n2,-1\n3,1e-300\n", "Time in training not known"),
        ("step,epoch,batch\n1,0,0\n", "1 step, not running"),
        ("loss_real\n1\n", "1 line of log.csv could not be read"),
    ],
)
def test_any_log_gives_a_page(run: Path, content: str | None, words: str) -> None:
    (run / "log.csv").unlink()
    if content is not None:
        (run / "log.csv").write_text(content)
    assert words in Page(page(run)).text()


def test_missing_pieces_are_named(run: Path) -> None:
    found = Page(page(run)).text()
    assert "Nothing was found." in found
    assert "there is no health.log" in found
    assert "mode collapse" in found
    assert "There is no interpolation, for there is no generator to make it" in found
    assert "there is no metrics.csv" in found
    (run / "health.log").touch()
    assert "health.log is empty" in Page(page(run)).text()
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "000060.safetensors").write_bytes(b"\0" * 100)
    assert "There is no interpolation" in Page(page(run)).text()
    # A broken picture, one that is too large to be true, one that is no PNG.
    png = (run / "samples" / "000060.png").read_bytes()
    (run / "samples" / "000060.png").write_bytes(png[: len(png) // 2])
    assert "1 of the pictures in samples/ could not be read" in Page(page(run)).text()
    assert Page(page(run)).all("img", id="frame")[0]["alt"] == "Grid of samples at step 30"
    Image.new("1", (5001, 5000)).save(run / "samples" / "000030.png")
    Image.new("RGB", (8, 8)).save(run / "samples" / "000000.png", "BMP")
    found = Page(page(run)).text()
    assert "There are no samples" in found
    assert "3 of the pictures in samples/ could not be read" in found
    for path in (run / "samples").iterdir():
        path.unlink()
    (run / "samples").rmdir()
    (run / "log.csv").unlink()
    (run / "config.json").write_text("{}")
    assert "There are no samples" in Page(page(run)).text()


def test_one_sample_needs_no_slider(run: Path) -> None:
    for step in (0, 30):
        (run / "samples" / f"{step:06d}.png").unlink()
    found = Page(page(run))
    assert "There is one so far, of step 60" in found.text()
    assert not found.all("input")
    assert found.all("img", id="frame")


def test_weights_that_are_not_finite_draw_nothing(train_cats: Callable[..., None]) -> None:
    train_cats("--out", "run", "--quiet")
    path = Path("run/checkpoints/000007.safetensors")
    tensors, state = serialization.load_checkpoint(path)
    tensors["generator/0.weight"][0, 0] = np.nan
    serialization.save_checkpoint(path, tensors, state)
    assert "weights that are not finite" in Page(page(Path("run"))).text()


def test_health_in_words(run: Path) -> None:
    (run / "health.log").write_text("step 1,200: the samples are alike.\n\nstep 1,300: k is stuck at 0.\n")
    found = Page(page(run))
    assert "step 1,200: the samples are alike. step 1,300: k is stuck at 0." in found.text()
    assert [text for tag, text in found.texts if tag == "b"][:2] == ["step 1,200:", "step 1,300:"]
    assert "Nothing was found" not in found.text()
    (run / "health.log").write_text("step 1: no\n" * 105)
    assert Page(page(run)).text().count("step 1: no") == 100
    assert "And 5 more." in Page(page(run)).text()


def test_state_time_and_speed(run: Path) -> None:
    # 30 steps of 8 images at 4 a second, and 30 at 2.
    text = Page(page(run)).text()
    assert "Time in training 3 min 00 s" in text
    assert "Images per second 3 (median)" in text
    assert "State 60 steps, not running" in text
    write_config(run, planned_steps=60)
    assert "60 of 60 steps, finished" in Page(page(run)).text()
    write_config(run, planned_steps=1000)
    assert "60 of 1,000 steps, stopped" in Page(page(run)).text()
    with open(run / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "60 of 1,000 steps, running" in Page(page(run)).text()
    assert "60 of 1,000 steps, stopped" in Page(page(run)).text()


def test_at_most_60_frames_and_5_megabytes(run: Path) -> None:
    rng = np.random.default_rng(0)
    for step in range(0, 6500, 100):
        noise = rng.integers(0, 256, (160, 320, 3), np.uint8)  # does not get smaller by compression
        Image.fromarray(noise).save(run / "samples" / f"{step:06d}.png")
    for step in (30, 60):
        (run / "samples" / f"{step:06d}.png").unlink()
    text = page(run)
    assert len(text) < 5_000_000
    found = Page(text)
    frames = found.frames()
    steps = [frame["step"] for frame in frames]
    assert (len(steps), steps[0], steps[-1]) == (60, 0, 6400)
    assert steps == sorted(set(steps))
    assert max(np.diff(steps)) <= 200
    assert "60 of the 65 in samples/ are here" in found.text()
    assert all(abs(np.divide(*pixels(frame["src"]).shape[:2]) - 0.5) < 0.01 for frame in frames)
    assert np.array_equal(pixels(frames[-1]["src"]), noise)  # the one that is looked at most


def test_panels() -> None:
    values = np.arange(3.0)
    losses = ["loss_real", "loss_gen_D", "loss_D", "loss_G"]
    names = ["step", "epoch", "batch", "k", *losses, "learning_rate", "M", "images_per_second"]
    began = panels_of({name: values + i for i, name in enumerate(names)}, 0.5)
    assert [list(panel.lines) for panel in began] == [
        ["gamma × loss_real", "loss_gen_D"],
        ["M"],
        ["k"],
        losses,
        ["learning_rate"],
        ["images_per_second"],
    ]
    assert np.array_equal(began[0].lines["gamma × loss_real"], 0.5 * (values + 4))
    others = panels_of(dict.fromkeys(("step", "d_loss", "d_real", "g_loss", "d_fake", "own"), values))
    assert [list(panel.lines) for panel in others] == [["d_loss", "g_loss"], ["d_real", "d_fake"], ["own"]]


def test_scores_and_unknown_systems(run: Path) -> None:
    write_log(run, "step,swd,ms_ssim,ms_ssim_data", "30,500,0.5,0.25", "60,400,nan,0.25", name="metrics.csv")
    write_config(run, system="my_own")
    found = Page(page(run))
    labels = [str(svg["aria-label"]) for svg in found.all("svg", role="img")][-2:]
    assert labels == [
        "Line chart of swd over the steps 0 to 60. Last: swd 400.",
        "Line chart of ms_ssim, ms_ssim_data over the steps 0 to 60. Last: ms_ssim not finite, ms_ssim_data 0.25.",
    ]
    assert "sliced Wasserstein distance to the real images: lower is better" in found.text()
    assert "minigan does not know what the losses of the system my_own are" in found.text()
    assert "about 1.39" not in found.text()


def test_thinning_keeps_peaks_ends_and_gaps() -> None:
    values = np.sin(np.arange(100_000) / 5000)
    values[41_237], values[70_001] = 9, -9
    values[80_000:82_000] = np.nan
    chosen = thinned(values)
    assert len(chosen) <= MOST_POINTS
    assert {41_237, 70_001} <= set(chosen)
    assert (np.diff(chosen) > 0).all()
    assert np.diff(chosen).max() < 2 * 100_000 / (MOST_POINTS / 2)
    assert np.isnan(values[chosen]).sum() >= 3
    assert np.array_equal(thinned(values[:MOST_POINTS]), np.arange(MOST_POINTS))


def test_a_line_has_a_gap_where_a_value_is_not_finite() -> None:
    steps = np.arange(1.0, 6)
    text = chart(Panel("one", {"loss": np.array([1, 2, np.nan, 2, 1])}, smooth=False), steps)
    paths = re.findall(r' d="([^"]*)"', text)
    assert paths == ["M200.0 500.0L400.0 0.0M800.0 0.0L1000.0 500.0"]
    assert text.count("<circle") == 4
    assert "2 values" not in text


def test_means_pass_over_what_is_not_finite() -> None:
    values = np.full(200, 3.0)
    values[[5, 50, 51]] = np.nan, np.inf, -np.inf
    values[100:] = np.nan
    mean = smoothed(values)
    np.testing.assert_allclose(mean[:100], 3, rtol=1e-12)
    assert np.isnan(mean[150:]).all()


def test_outliers_are_said_not_drawn() -> None:
    values = np.ones(2000)
    values[700] = 50
    text = chart(Panel("one", {"loss": values}), np.arange(2000.0))
    assert "1 value lies outside, the farthest 50 at step 700 (loss)." in text
    ticks = [float(t) for t in re.findall(r'text-anchor="end">([^<]*)<', text)]
    assert (ticks[0], max(ticks) < 5) == (0, True)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 7), (-3, 4.2), (0, 1e-5), (0, 12_345), (0.0, 3e38), (0, 1.5)])
def test_ticks_are_few_round_and_enclose(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert ticks[0] <= low + 1e-9 * high
    assert ticks[-1] >= high * (1 - 1e-9)
    step = ticks[1] - ticks[0]
    assert ticks[0] + 2 * step > low
    assert float(f"{step:e}".split("e")[0]) == pytest.approx(round(float(f"{step:e}".split("e")[0])))
    assert round(float(f"{step:e}".split("e")[0])) in (1, 2, 5)
    np.testing.assert_allclose(np.diff(ticks), step, rtol=1e-9)


def test_numbers_as_people_write_them() -> None:
    for value, text in (
        (0, "0"),
        (0.5, "0.5"),
        (2.54321, "2.54"),
        (12_345, "12,345"),
        (100, "100"),
        (0.0277123, "0.0277"),
        (0.0004, "0.0004"),
        (-3, "-3"),
        (3e38, "3e+38"),
    ):
        assert number(value) == text


def test_a_report_changes_no_random_numbers(train_cats: Callable[..., None]) -> None:
    train_cats("--out", "run", "--quiet")
    mg.manual_seed(5)
    before = json.dumps(mg.random.get_state(), default=str)
    page(Path("run"))
    assert json.dumps(mg.random.get_state(), default=str) == before


def test_the_page_is_written_anew_and_where_it_is_asked_for(run: Path, capsys: pytest.CaptureFixture) -> None:
    for _ in range(2):
        main(["report", str(run)])
    main(["report", str(run), "--out", str(run.parent / "mine.HTML")])
    assert "mine.HTML: 0.0 MB" in capsys.readouterr().out
    assert {path.name for path in run.parent.iterdir()} == {"mine.HTML", run.name}
    assert (run / "report.html").exists()


def test_a_mistake_gets_one_line(run: Path, capsys: pytest.CaptureFixture) -> None:
    (run / "folder.html").mkdir()
    broken, listed = run.parent / "broken", run.parent / "listed"
    for folder, content in ((broken, "{"), (listed, "[]")):
        folder.mkdir()
        (folder / "config.json").write_text(content)
    for arguments, words in (
        (["nowhere"], "nowhere: expected a run's folder, with a config.json in it"),
        ([str(broken)], "broken/config.json: cannot be read"),
        ([str(listed)], "listed/config.json: expected a JSON object, got list"),
        ([str(run), "--out", "a.png"], "--out: expected the name of an .html file, got a.png"),
        ([str(run), "--out", str(run / "folder.html")], "--out: expected the name of an .html file"),
        ([str(run), "--out", str(run / "nowhere" / "a.html")], "cannot be written: No such file or directory"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["report", *arguments])
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
