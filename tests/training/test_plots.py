"""losses.png: what is drawn where, and logs that are short, empty or have gaps."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minigan.training import plots
from minigan.training.plots import BOTTOM, COLORS, FOOT, LEFT, PANEL_HEIGHT, RIGHT, TOP, WIDTH, plot_losses
from minigan.training.system import Curves


def drawn(rows: list[tuple[float, ...]], names: str, panels: list[list[str]]) -> np.ndarray:
    """The picture of a log with these rows: (height, width, 3), int."""
    path = Path("log.csv")
    path.write_text("\n".join([f"step,{names}", *(",".join(map(str, row)) for row in rows), ""]))

    def curves(log: Curves) -> list[Curves]:
        return [{name: log[name] for name in panel} for panel in panels]

    content = plot_losses(path, curves)
    assert content is not None
    with Image.open(io.BytesIO(content)) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        return np.asarray(picture).astype(int)


def heights(picture: np.ndarray, color: int, column: int, panel: int = 0) -> np.ndarray:
    """The rows within a panel's axes that have a colour, as shares of the axis from its bottom to its top."""
    top, bottom = PANEL_HEIGHT * panel + TOP, PANEL_HEIGHT * (panel + 1) - BOTTOM
    near = np.abs(picture[top : bottom + 1, column] - COLORS[color]).max(-1) < 24
    return 1 - np.flatnonzero(near) / (bottom - top)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_lines_are_where_their_values_are() -> None:
    # The axes go from 0 to 4: values that are whole steps of their ticks.
    picture = drawn([(step, 1, 4, 3) for step in range(1, 101)], "a,b,c", [["a", "b"], ["c"]])
    assert picture.shape == (2 * PANEL_HEIGHT + FOOT, WIDTH, 3)
    pixel = 1.5 / (PANEL_HEIGHT - TOP - BOTTOM)
    for column in (LEFT + 50, (LEFT + WIDTH - RIGHT) // 2, WIDTH - RIGHT - 5):
        for color, value, panel, top in ((0, 1, 0, 4), (1, 4, 0, 4), (0, 3, 1, 3)):
            found = heights(picture, color, column, panel)
            assert len(found) > 0
            np.testing.assert_allclose(found, value / top, atol=pixel)


def test_the_steps_go_from_0_to_the_last_one() -> None:
    steps = np.arange(1, 1001)
    picture = drawn([(step, step / 1000) for step in steps], "a", [["a"]])
    for share in (0.25, 0.5, 0.75):
        found = heights(picture, 0, round(LEFT + share * (WIDTH - RIGHT - LEFT)))
        np.testing.assert_allclose(found, share, atol=0.02)
    assert not len(heights(picture, 0, LEFT - 3))


def test_a_log_of_one_line_is_a_dot() -> None:
    picture = drawn([(1, 0.5)], "a", [["a"]])
    assert len(heights(picture, 0, WIDTH - RIGHT - 1))
    assert not len(heights(picture, 0, WIDTH - RIGHT - 20))


def test_what_is_not_finite_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "smoothed", lambda values: values)
    picture = drawn(
        [(s, float("nan") if 40 < s < 60 else 1e300 if s == 60 else 1) for s in range(1, 101)], "a", [["a"]]
    )
    assert len(heights(picture, 0, round(LEFT + 0.3 * (WIDTH - RIGHT - LEFT))))
    assert not len(heights(picture, 0, round(LEFT + 0.5 * (WIDTH - RIGHT - LEFT))))
    assert len(heights(picture, 0, round(LEFT + 0.7 * (WIDTH - RIGHT - LEFT))))


def test_without_a_line_there_is_no_picture() -> None:
    assert plot_losses(Path("nowhere.csv"), lambda log: []) is None
    Path("log.csv").write_text("step,a\n")
    assert plot_losses(Path("log.csv"), lambda log: []) is None
