"""The session on a GPU goes on where a part fails, says so, and finds the package where it is not installed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from minigan.ops.conv2d_ladder import RUNGS

# The benchmarks are scripts beside each other, not a package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gpu_session
from gpu_session import Part

PYTHON = sys.executable


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(*parts: Part) -> None:
        monkeypatch.setattr(gpu_session, "parts", lambda folder, dry_run: list(parts))

    return use


def test_it_goes_on_where_a_part_fails(only: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only(
        Part("fails", [PYTHON, "-c", "print('why'); raise SystemExit(3)"], 20),
        Part("hangs", [PYTHON, "-c", "import time; time.sleep(60)"], 0.5),
        Part("sanitizer", ["no-such-tool", "x"], 20),
        Part("works", [PYTHON, "-c", "print('done')"], 20),
    )
    assert gpu_session.main(["--out", str(tmp_path / "new")]) == 1
    assert "2 parts ok" not in capsys.readouterr().out
    content = json.loads((tmp_path / "new" / "session.json").read_text())
    found = {one["name"]: (one["status"], one["reason"]) for one in content["parts"]}
    assert found["fails"] == ("failed", "exit status 3, see fails.log")
    assert found["hangs"][0] == "failed"
    assert found["hangs"][1].startswith("not done after ")
    assert found["sanitizer"] == ("skipped", "no-such-tool is not on the PATH")
    assert content["versions"]["numpy"].startswith("numpy ")
    assert "why" in (tmp_path / "new" / "fails.log").read_text()


def test_what_takes_too_long_has_a_last_word(only: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest, interrupted, says which tests failed; what does not listen is killed with all that it started."""
    monkeypatch.setattr(gpu_session, "LAST_WORDS", 4.0)
    tests = tmp_path / "test_slow.py"
    tests.write_text("import time\ndef test_wrong():\n    assert 1 == 2\ndef test_slow():\n    time.sleep(60)\n")
    deaf = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    only(
        Part("tests", [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)], 8),
        Part("deaf", [PYTHON, "-c", deaf], 1),
    )
    start = time.perf_counter()
    assert gpu_session.main(["--out", str(tmp_path / "out")]) == 1
    assert time.perf_counter() - start < 40
    assert "FAILED" in (tmp_path / "out" / "tests.log").read_text()
    parts = json.loads((tmp_path / "out" / "session.json").read_text())["parts"]
    assert [part["reason"][:14] for part in parts[:2]] == ["not done after"] * 2


def test_what_is_left_out_is_not_a_failure(only: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only(Part("works", [PYTHON, "-c", ""], 20), Part("sanitizer", ["no-such-tool"], 20))
    assert gpu_session.main(["--out", str(tmp_path)]) == 0
    assert "1 parts ok; failed: none; skipped: sanitizer, ncu" in capsys.readouterr().out


def test_no_part_begins_without_time(only: Any, tmp_path: Path) -> None:
    only(Part("late", [PYTHON, "-c", ""], 20))
    assert gpu_session.main(["--out", str(tmp_path), "--seconds", "1"]) == 0
    [late] = json.loads((tmp_path / "session.json").read_text())["parts"]
    assert (late["status"], late["reason"]) == ("skipped", "no time was left")


def test_all_parts_fit_into_ten_minutes() -> None:
    planned = gpu_session.parts(Path("out"), dry_run=False)
    assert sum(part.seconds for part in planned) <= gpu_session.SECONDS < 600
    assert all("cuda" in part.command or part.name == "compile" for part in planned)


@pytest.mark.parametrize("dry_run", [False, True])
def test_steps_are_timed_by_the_chosen_rungs_and_by_the_fastest(dry_run: bool) -> None:
    planned = {part.name: part.command for part in gpu_session.parts(Path("out"), dry_run)}
    for precision in ("tf32", "bf16"):
        usual, tuned = planned[f"steps-{precision}"], planned[f"tuned-{precision}"]
        assert tuned[:2] == ["env", "MINIGAN_AUTOTUNE=1"]
        assert tuned[2:] == [one.replace("steps-", "tuned-") for one in usual]
        if not dry_run:
            assert usual[usual.index("--precision") + 1] == precision


def test_the_sanitizer_sees_each_array_by_itself(tmp_path: Path) -> None:
    """CuPy's pool would hand out parts of one allocation, within which compute-sanitizer finds nothing wrong."""
    cupy = "class cuda:\n    def set_allocator(allocator):\n        print('allocator', allocator)\n"
    (tmp_path / "cupy.py").write_text(cupy)
    tests = tmp_path / "test_two.py"
    tests.write_text("def test_right():\n    pass\ndef test_wrong():\n    assert 1 == 2\n")
    [part] = [one for one in gpu_session.parts(tmp_path, dry_run=False) if one.name == "sanitizer"]
    command = part.command[part.command.index(PYTHON) : part.command.index("-m")]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([*command, str(tests)], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.startswith("allocator None\n")
    assert "1 failed, 1 passed" in done.stdout
    assert done.returncode == 1


def test_the_package_is_found_where_it_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *given, **more: subprocess.CompletedProcess(given, 1))
    environment = gpu_session.environment_of(tmp_path)
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(tmp_path)
    # -S: without the packages of this Python, an installed minigan among them.
    code = "import importlib.util as u; print(u.find_spec('minigan').origin)"
    done = run([PYTHON, "-P", "-S", "-c", code], env=environment, capture_output=True, text=True, cwd="/")
    assert done.stdout.strip() == str(tmp_path / "minigan" / "__init__.py")
    assert (tmp_path / "minigan" / "kernels" / "common.cuh").exists()


def test_a_package_installed_from_elsewhere_is_not_taken_for_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other" / "minigan"
    other.mkdir(parents=True)
    (other / "__init__.py").touch()
    (other / "kernels.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(other.parent))
    alias = tmp_path / "alias"
    alias.mkdir()
    environment = gpu_session.environment_of(alias)
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(alias), str(other.parent)]
    code = "import minigan; print(minigan.__file__)"
    done = subprocess.run([PYTHON, "-P", "-c", code], env=environment, capture_output=True, text=True, cwd="/")
    assert done.stdout.strip() == str(alias / "minigan" / "__init__.py")
    monkeypatch.setenv("PYTHONPATH", str(alias))
    assert gpu_session.environment_of(tmp_path / "unused")["PYTHONPATH"] == str(alias)  # it is this one, by links


def entry(layer: str, rung: str, seconds: float, chosen: bool) -> dict[str, Any]:
    timing = {"cold": {"median": seconds}}
    return {
        "problem": {"layers": [layer]},
        "pass": "forward",
        "precision": "tf32",
        "competitor": rung,
        "chosen": chosen,
        "timing": timing,
    }


def test_ncu_looks_at_the_two_that_come_off_worst(tmp_path: Path) -> None:
    results = []
    for layer, ours in (("cats G1", 2.0), ("cats G2", 9.0), ("anime D1", 1.0), ("began E1", 3.0)):
        results += [entry(layer, "cuDNN tf32", 2.0, False), entry(layer, "rung 4", 100.0, False)]
        results.append(entry(layer, "rung 6", ours, True))
    (tmp_path / "kernels.json").write_text(json.dumps({"results": results}))
    found = gpu_session.profiles(tmp_path)
    assert [part.command[part.command.index("--layer") + 1] for part in found] == ["cats G2", "began E1"]
    assert all(part.command[-2:] == ["--rung", "6"] for part in found)
    (tmp_path / "kernels.json").unlink()
    [part] = gpu_session.profiles(tmp_path)
    assert part.status == gpu_session.SKIPPED


def test_tensor_cores_of_both_generations_are_timed(tmp_path: Path) -> None:
    command = next(one.command for one in gpu_session.parts(tmp_path, dry_run=False) if one.name == "kernels")
    timed = [RUNGS[int(one)] for one in command[command.index("--rung") + 1 :] if one.isdigit()]
    for precision in ("tf32", "bf16"):
        assert {spec.architecture for spec in timed if spec.precision == precision} == {80, 90}
