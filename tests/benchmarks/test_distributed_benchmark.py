"""The benchmark of data-parallel training sees what is wrong, and its model is the formula that it states."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import distributed as benchmark
import pytest

BESIDE = Path(sys.executable).with_name("mpiexec")


def seconds(median: float, scatter: float = 0.0) -> dict[str, float]:
    return {"median": median, "low": median - scatter / 2, "high": median + scatter / 2, "best": median, "count": 3}


def sums(latency: float, bandwidth: float) -> list[dict[str, Any]]:
    """Exactly as the model has it, but for those larger than a bucket, which nobody sends."""
    found = [{"bytes": size, "seconds": seconds(latency + size / bandwidth)} for size in benchmark.BYTES]
    for one in found:
        if one["bytes"] > 4 << 20:
            one["seconds"] = seconds(1.0)
    return found


def test_the_model_finds_latency_and_bandwidth_again() -> None:
    assert benchmark.fit(sums(5e-6, 3e9)) == pytest.approx((5e-6, 3e9))


def test_a_sum_around_a_ring() -> None:
    # 4 ranks: 6 messages one after the other, each a quarter of 8 MB.
    assert benchmark.ring(4, 8e6, 1e-3, 1e9) == pytest.approx(6 * (1e-3 + 2e6 / 1e9))
    assert benchmark.ring(1, 8e6, 1e-3, 1e9) == 0


def test_how_much_backward_hides() -> None:
    times = {benchmark.ALONE: 10.0, benchmark.AT_END: 14.0, benchmark.OVERLAPPED: 11.0}

    def hidden(scatter: float, **changed: float) -> float | None:
        return benchmark.hidden_share({name: {"seconds": seconds(t, scatter)} for name, t in (times | changed).items()})

    assert hidden(0.5) == pytest.approx(0.75)
    assert hidden(5.0) is None  # what the sums cost is less than the scatter
    times[benchmark.OVERLAPPED] = 15.0
    assert hidden(0.5) == 0
    times[benchmark.OVERLAPPED] = 9.0
    assert hidden(0.5) == 1


def test_losses_that_differ_are_named() -> None:
    one = {"cats": [{"loss": 1.0}, {"loss": 2.0}]}
    assert benchmark.wrong_losses(one, one) == []
    (said,) = benchmark.wrong_losses({"cats": [{"loss": 1.0}, {"loss": 2.1}]}, one)
    assert said == "cats: step 2: loss: expected 2, got 2.1"
    assert len(benchmark.wrong_losses({"cats": [{"loss": float("nan")}, {"loss": 2.0}]}, one)) == 1


def test_a_model_of_a_file_that_is_not_there() -> None:
    words = r"--model: expected a JSON file of distributed\.py; no\.json cannot be read: .*No such file"
    with pytest.raises(SystemExit, match=words):
        benchmark.main(["--model", "no.json"])


def test_what_the_published_systems_send() -> None:
    """systems.md's counts of parameters, four bytes each; anime's discriminator is updated twice a step."""
    assert benchmark.gradient_bytes("anime") == 4 * (3_614_723 + 2 * 2_766_529)
    assert benchmark.gradient_bytes("maxpool") == 4 * (4_768_899 + 20_887_809)


@pytest.mark.skipif(
    not BESIDE.exists() and shutil.which("mpiexec") is None, reason="there is no mpiexec: pip install -e '.[mpi]'"
)
def test_two_ranks_are_measured(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install -e '.[mpi]'")
    path = tmp_path / "new" / "out.json"
    options = ["--systems", "anime", "--batch-size", "4", "--seconds", "0.1"]
    assert benchmark.main([*options, "--out", str(path)]) == 0
    said = capfd.readouterr().out
    found = json.loads(path.read_text())
    times = found["steps"]["anime"]
    assert list(times) == [benchmark.ALONE, benchmark.AT_END, benchmark.OVERLAPPED, benchmark.SYNCHRONISED]
    assert times[benchmark.ALONE]["sums"] == 0
    # Three updates, a sum each, and one of the buffers; statistics are more sums, of few bytes.
    assert times[benchmark.AT_END]["sums"] == 4
    assert times[benchmark.AT_END]["bytes"] == times[benchmark.OVERLAPPED]["bytes"]
    assert times[benchmark.SYNCHRONISED]["sums"] > times[benchmark.OVERLAPPED]["sums"]
    assert [one["bytes"] for one in found["sums"]] == benchmark.BYTES
    assert all(one["seconds"]["median"] > 0 for one in (*found["sums"], *times.values()))
    assert "PREDICTION, not a measurement" in said
    assert benchmark.main(["--model", str(path)]) == 0
    assert capfd.readouterr().out == said
