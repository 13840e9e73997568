"""A run as one page of HTML: how it stands, whether it is healthy, samples, losses, settings.

The page has all its pictures in it and loads nothing, so it can be mailed, and opened anywhere. What is missing in the
run's folder is said on the page. Files of a run may come from others: their texts are escaped, and the page's policy
allows no script but its own.
"""

import base64
import fcntl
import hashlib
import io
import json
import re
import string
import time
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import minigan as mg
from minigan import serialization
from minigan.data.decode import MAX_PIXELS
from minigan.serialization import CheckpointError
from minigan.training.charts import Panel, chart, is_finite, number, smoothing_width
from minigan.training.errors import UserError
from minigan.training.latent import slerp
from minigan.training.plots import read_columns
from minigan.training.restore import load_generator
from minigan.version import __version__

TEMPLATE = Path(__file__).with_name("report.html")

MOST_FRAMES = 60
MOST_FINDINGS = 100
WALK = 10  # images from one random point to another
# In bytes, before base64 makes them a third longer; together they keep the page below 5 MB.
ALL_FRAMES = 2_700_000
LAST_FRAME = 350_000
ONE_STEP_OF_WALK = 30_000
# A picture that is too large as PNG becomes a JPEG so wide, of such a quality: the first that is small enough.
SMALLER = ((1024, 90), (1024, 80), (800, 80), (640, 75), (480, 75), (400, 65), (320, 60), (240, 40))

# The discriminator's loss when it can only guess, by how each system adds up real and generated images.
WHEN_GUESSING = {
    "cats": "about 1.39, which is 0.69 for real and 0.69 for generated images",
    "simpsons": "about 0.69, the mean over real and generated images",
    "anime": "about 0.69 for real (loss_real) and 0.69 for generated images (loss_fake)",
    "maxpool": "about 0.69, the mean over real and generated images",
}
ADVERSARIAL = (
    "The discriminator learns to tell real images from generated ones, and the generator learns to be taken for real. "
    "Each loss says how one network does against the other as it is at that moment, so neither has to fall, and a "
    "lower loss does not mean better images: for that, look at the samples. A discriminator that can only guess has a "
    "loss of {guess}, and the generator then has about 0.7; most healthy runs move around some level, with the "
    "discriminator below that and the generator above. A discriminator near 0 with a generator that rises on and on "
    "has won: it is so sure that the generator learns little from it."
)
PROBABILITIES = (
    "d_real and d_fake are how real the discriminator finds real and generated images, from 0 to 1: far apart it sees "
    "the difference, both near 0.5 it guesses."
)
BALANCED = (
    "The discriminator is an autoencoder, and losses are mean absolute differences between images and what it makes of "
    "them: loss_real for real images, loss_gen_D for generated ones, and loss_G for those that the generator learns "
    "from; loss_D, loss_real less k times loss_gen_D, is what the discriminator lowers. k, how much generated images "
    "count in it, is steered so that loss_gen_D stays at gamma times loss_real: in the first chart the two lines "
    "should meet. M, loss_real plus the distance between these two lines, measures convergence: unlike the losses of "
    "other GANs it should fall, and lower is better. k may take any level between 0 and 1, but where it stays at 0 "
    "(after the beginning) or at 1, the balance is lost."
)
UNKNOWN = (
    "minigan does not know what the losses of the system {system} are, since it is not one of its own. In most GANs "
    "each loss says how one network does against the other as it is at that moment: neither has to fall, and a lower "
    "loss does not mean better images. For that, look at the samples."
)
LOOKED_FOR = [
    "losses, gradients and weights that are not finite numbers",
    "a discriminator that wins (it is nearly always right, and the generator's loss is high), or that only guesses",
    "mode collapse (samples become alike)",
]
LOOKED_FOR_IN_BALANCE = [
    "losses, gradients and weights that are not finite numbers",
    "mode collapse (samples become alike)",
    "a k that stays at 0 or at 1",
    "an M that rises",
]
METRICS = {
    "swd": "swd, the sliced Wasserstein distance to the real images: lower is better",
    "ms_ssim": "ms_ssim, how alike generated images are: near 1 they are all the same",
    "ms_ssim_data": "ms_ssim_data, how alike the real ones are, about where ms_ssim should be",
    "fid": "fid, the Fréchet distance to the real images: lower is better",
}

Columns = Mapping[str, np.ndarray]


def write_report(run: Path, out: Path | None = None) -> Path:
    """Writes the page of a run's folder to `out`, or to report.html in the folder; returns where.

    Raises UserError where there is no run, and CheckpointError where the page cannot be written.
    """
    out = out or run / "report.html"
    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        raise UserError(f"--out: expected the name of an .html file, got {out}")
    # A name that is no text, or half a character in a file, becomes a question mark.
    serialization.write_whole(out, page(run).encode("utf-8", "replace"))
    return out


def page(run: Path) -> str:
    """The page of a run's folder. Raises UserError where there is no run."""
    config = _config(run)
    log, unread = read_columns(run / "log.csv")
    metrics, _ = read_columns(run / "metrics.csv")
    template = TEMPLATE.read_text("utf-8")
    script = re.search(r"<script>(.*?)</script>", template, re.DOTALL)
    assert script is not None
    name = run.resolve().name
    return string.Template(template).substitute(
        script_hash=_hash(script[1]),
        title=escape(f"{name}: {config.get('system')}, preset {config.get('preset')}"),
        heading=escape(f"{config.get('system')}, preset {config.get('preset')}"),
        subtitle=escape(f"The training run {name}, started {config.get('started', 'at a time that is not known')}"),
        facts=_facts(run, config, log),
        health=_health(run, log, unread),
        samples=_samples(run),
        interpolation=_interpolation(run),
        losses=_losses(run, config, log),
        metrics=_metrics(metrics),
        settings=_settings(config),
        footer=f"Written {time.strftime('%Y-%m-%d %H:%M')} by minigan {escape(__version__)}.",
    )


def panels_of(log: Columns, gamma: Any = None) -> list[Panel]:
    """The charts of a log: all its columns, those that belong together in one.

    gamma: BEGAN's, the ratio that k holds.
    """
    left = {name: values for name, values in log.items() if name not in ("step", "epoch", "batch")}
    speed = left.pop("images_per_second", None)
    panels = []
    if _is_balanced(left) and isinstance(gamma, (int, float)):
        lines = {"gamma × loss_real": gamma * left["loss_real"], "loss_gen_D": left["loss_gen_D"]}
        panels += [Panel("Balance: these two should meet", lines)]
        panels += [Panel("M, the measure of convergence", {"M": left.pop("M")})]
        panels += [Panel("k, how much generated images count", {"k": left.pop("k")})]
    losses = {name: left.pop(name) for name in list(left) if "loss" in name}
    if losses:
        panels.append(Panel("Losses" if not panels else "All losses", losses))
    judged = {name: left.pop(name) for name in list(left) if name in ("d_real", "d_fake")}
    if judged:
        panels.append(Panel("How real the discriminator finds images", judged, top=1.0))
    panels += [Panel(name.replace("_", " ").capitalize(), {name: values}) for name, values in left.items()]
    if speed is not None:
        panels.append(Panel("Images per second", {"images_per_second": speed}))
    return panels


def _is_balanced(log: Columns) -> bool:
    """Whether it is BEGAN's."""
    return {"k", "M", "loss_real", "loss_gen_D"} <= log.keys()


def _config(run: Path) -> dict[str, Any]:
    path = run / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{run}: expected a run's folder, with a config.json in it") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(config).__name__}")
    return config


def _hash(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _setting(config: Mapping[str, Any], name: str) -> Any:
    settings = config.get("settings")
    return settings.get(name) if isinstance(settings, dict) else None


def _facts(run: Path, config: Mapping[str, Any], log: Columns) -> str:
    """How the run stands, in a few numbers."""
    rates = log.get("images_per_second", np.zeros(0))
    measured = is_finite(rates) & (rates > 0)
    facts = {"State": _state(run, config, log)}
    batch_size = _setting(config, "batch_size")
    if measured.any():
        # Each line has the speed of the steps since the one before, so it tells their time.
        if isinstance(batch_size, int):
            steps = np.diff(log["step"], prepend=0)
            facts["Time in training"] = _duration(float((batch_size * steps[measured] / rates[measured]).sum()))
        facts["Images per second"] = f"{number(float(np.median(rates[measured])))} (median)"
    facts["Device"] = f"{config.get('device')}, {config.get('precision')}"
    if log:
        written = time.localtime((run / "log.csv").stat().st_mtime)
        facts["Last line of the log"] = time.strftime("%Y-%m-%d %H:%M", written)
    return "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())


def _state(run: Path, config: Mapping[str, Any], log: Columns) -> str:
    """Steps done of planned, and whether more are coming."""
    done, planned = int(log["step"][-1]) if log else 0, config.get("planned_steps")
    if not isinstance(planned, int):
        return f"{done:,} step{'s' * (done != 1)}, {'running' if _is_running(run) else 'not running'}"
    state = "running" if _is_running(run) else "finished" if done >= planned else "stopped"
    return f"{done:,} of {planned:,} steps, {state}"


def _is_running(run: Path) -> bool:
    """Whether a process has the run's lock."""
    try:
        with open(run / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # and at once given back
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _duration(seconds: float) -> str:
    if not 0 <= seconds < 1e10:
        return "not known"
    minutes, s = divmod(round(seconds), 60)
    h, m = divmod(minutes, 60)
    return f"{h:,} h {m:02d} min" if h else f"{m} min {s:02d} s" if m else f"{s} s"


def _health(run: Path, log: Columns, unread: int) -> str:
    """What is in health.log, and what the log itself shows."""
    path = run / "health.log"
    found = path.read_text("utf-8", "replace").split("\n") if path.is_file() else []
    found = [line.strip() for line in found if line.strip()]
    for name, values in log.items():
        bad = np.flatnonzero(~is_finite(values))
        if len(bad):
            more = f", and in {len(bad) - 1:,} more lines" if len(bad) > 1 else ""
            found.append(f"step {log['step'][bad[0]]:.0f}: {name} is {values[bad[0]]:g} in the log{more}")
    note = (
        f"<p>{unread:,} line{'s' * (unread > 1)} of log.csv could not be read, and are left out.</p>" if unread else ""
    )
    if found:
        items = "".join(f"<li>{_finding(line)}</li>" for line in found[:MOST_FINDINGS])
        more = f"<p>And {len(found) - MOST_FINDINGS:,} more.</p>" if len(found) > MOST_FINDINGS else ""
        return f'<ul class="bad">{items}</ul>{more}{note}'
    where = "health.log is empty" if path.is_file() else "there is no health.log"
    looked_for = LOOKED_FOR_IN_BALANCE if _is_balanced(log) else LOOKED_FOR
    return (
        f'<p class="good">Nothing was found.</p><p>What a training finds, it writes into health.log in its folder; '
        f"{where}. Looked for: {'; '.join(looked_for)}.</p>{note}"
    )


def _finding(line: str) -> str:
    """A line "step N: text", with its step set off."""
    step, colon, text = line.partition(":")
    return f"<b>{escape(step)}:</b>{escape(text)}" if colon and step.startswith("step ") else escape(line)


def _samples(run: Path) -> str:
    """A picture with a slider; without JavaScript, the last picture."""
    paths = {int(path.stem): path for path in (run / "samples").glob("*.png") if path.stem.isdecimal()}
    steps = sorted(paths)
    chosen = [
        steps[i] for i in sorted({round(x) for x in np.linspace(0, len(steps) - 1, min(len(steps), MOST_FRAMES))})
    ]
    share = (ALL_FRAMES - LAST_FRAME) // max(len(chosen) - 1, 1)
    frames: list[dict[str, Any]] = []
    for step in chosen:
        picture = _opened(paths[step])
        if picture is not None:
            uri = _uri(picture, LAST_FRAME if step == chosen[-1] else share)
            frames.append({"step": step, "src": uri})
            size = picture.size
    note = ""
    if len(frames) < len(chosen):
        note = f"<p>{len(chosen) - len(frames)} of the pictures in samples/ could not be read, and are left out.</p>"
    if not frames:
        return f"<p>There are no samples: no picture such as samples/000100.png can be read in the folder.</p>{note}"
    last = frames[-1]
    words = f"step {last['step']:,}"
    image = (
        f'<img id="frame" alt="Grid of samples at {words}" width="{size[0]}" height="{size[1]}" decoding="sync" '
        f'src="{last.pop("src")}">'
    )  # so it is not among the frames of the script too
    intro = "Each grid has the same noise z, so each of its images can be followed through the training."
    if len(frames) == 1:
        return f'<p>{intro} There is one so far, of {words}.</p><figure class="samples">{image}</figure>{note}'
    spread = f"; {len(chosen)} of the {len(steps):,} in samples/ are here" if len(chosen) < len(steps) else ""
    return (
        f'<p>{intro} The last one is of {words}{spread}.</p><figure class="samples">{image}'
        '<div class="controls" id="controls" hidden><button type="button" id="play">Play</button>'
        f'<label><span id="shown">{words}</span><input type="range" id="slider" min="0" max="{len(frames) - 1}" '
        f'value="{len(frames) - 1}" step="1" aria-label="Training step"></label></div></figure>'
        f'<script type="application/json" id="frames">{json.dumps(frames)}</script>{note}'
    )


def _opened(path: Path) -> Image.Image | None:
    """A picture of a sane size, or None."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                return None
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _uri(picture: Image.Image, most: int) -> str:
    """A picture as a data URI of about so many bytes at most: a PNG, or where that is larger, a JPEG."""
    content = io.BytesIO()
    picture.save(content, "PNG")
    kind = "png"
    for width, quality in SMALLER:
        if content.tell() <= most:
            break
        width = min(width, picture.width)
        small = picture.resize((width, max(1, picture.height * width // picture.width)), Image.Resampling.LANCZOS)
        content = io.BytesIO()
        small.save(content, "JPEG", quality=quality)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def _interpolation(run: Path) -> str:
    """Images on the way between two random points of the last checkpoint's generator."""
    state = mg.random.get_state()  # networks draw their first weights, too
    try:
        images = _walk(run)
    except (UserError, CheckpointError) as error:
        return f"<p>There is no interpolation, for there is no generator to make it: {escape(str(error))}.</p>"
    finally:
        mg.random.set_state(state)
    strip = "".join(f'<img alt="" src="{_uri(Image.fromarray(image), ONE_STEP_OF_WALK)}">' for image in images)
    return (
        f"<p>The first and the last image come from two random points; the others lie evenly on the way between them. "
        f"A generator that has learned what such images are changes a little from each to the next; one that jumps "
        f"from one picture to another has learned these by heart. <code>python -m minigan interpolate</code> makes "
        f"longer walks.</p>"
        f'<div class="strip" role="img" '
        f'aria-label="{WALK} images on the way from one random point to another">{strip}</div>'
    )


def _walk(run: Path) -> np.ndarray:
    """uint8 (WALK, H, W, 3). Raises UserError or CheckpointError where there is no generator that can draw."""
    generator = load_generator(run, "cpu")
    if not all(np.isfinite(tensor.numpy()).all() for _, tensor in generator.named_tensors()):
        raise UserError("the last checkpoint's has weights that are not finite")
    mg.manual_seed(0)
    start, end = generator.noise(2).numpy()
    return generator.generate(mg.tensor(slerp(start, end, np.linspace(0, 1, WALK)), device="cpu"))


def _losses(run: Path, config: Mapping[str, Any], log: Columns) -> str:
    meaning = "<h3>What they mean</h3>" + "".join(f"<p>{escape(text)}</p>" for text in _meaning(config, log))
    if not log:
        missing = "has no line that can be read yet" if (run / "log.csv").exists() else "is not there yet"
        return f"{meaning}<p>There are no charts: log.csv {missing}.</p>"
    width = smoothing_width(len(log["step"]))
    how = (
        f"Thin lines: each line of the log. Strong lines: means over {width:,} line{'s' * (width > 1)} of it. The "
        "number beside a name is the last mean. To the right: training steps."
    )
    charts = "".join(chart(panel, log["step"]) for panel in panels_of(log, _setting(config, "gamma")))
    return f'{meaning}<h3>As they went</h3><p class="note">{how}</p><div class="charts">{charts}</div>'


def _meaning(config: Mapping[str, Any], log: Columns) -> list[str]:
    """Paragraphs about the losses of this kind of system."""
    system = str(config.get("system"))
    if system == "began":
        return [BALANCED]
    if system not in WHEN_GUESSING:
        return [UNKNOWN.format(system=system)]
    judged = {"d_real", "d_fake"} <= log.keys()
    return [ADVERSARIAL.format(guess=WHEN_GUESSING[system]), *([PROBABILITIES] if judged else [])]


def _metrics(metrics: Columns) -> str:
    names = [name for name in metrics if name != "step"]
    if not names:
        return "<p>None were measured: there is no metrics.csv with numbers in the folder.</p>"
    known = "; ".join(METRICS[name] for name in names if name in METRICS)
    # A score of the samples, and the same of the data, in one.
    with_data = {name: [name, f"{name}_data"] if f"{name}_data" in names else [name] for name in names}
    drawn_beside = {pair[1] for pair in with_data.values() if len(pair) == 2}
    panels = (
        Panel(name, {line: metrics[line] for line in lines}, smooth=False)
        for name, lines in with_data.items()
        if name not in drawn_beside
    )
    charts = "".join(chart(panel, metrics["step"]) for panel in panels)
    return (f"<p>{escape(known)}.</p>" if known else "") + f'<div class="charts">{charts}</div>'


def _settings(config: Mapping[str, Any]) -> str:
    """Two tables: the settings, and all else that config.json has."""
    settings, versions = config.get("settings"), config.get("versions")
    rest = {name: value for name, value in config.items() if name not in ("settings", "versions")}
    if config.get("data", "") is None:
        rest["data"] = "none: drawn toy images"
    tables = [
        ("Of the preset and the command line", settings if isinstance(settings, dict) else {"settings": settings}),
        ("Of the run", {**rest, **(versions if isinstance(versions, dict) else {"versions": versions})}),
    ]
    return f'<div class="tables">{"".join(_table(caption, rows.items()) for caption, rows in tables)}</div>'


def _table(caption: str, rows: Iterable[tuple[str, Any]]) -> str:
    cells = "".join(
        f'<tr><th scope="row">{escape(name.replace("_", " "))}</th><td>{escape(_value(value))}</td></tr>'
        for name, value in rows
    )
    return f"<table><caption>{caption}</caption><tbody>{cells}</tbody></table>"


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return " × ".join(_value(part) for part in value)
    return str(value)
