"""The debugger's session in kernels/README.md names the lines that the source has."""

import re
from pathlib import Path

KERNELS = Path(__file__).resolve().parents[2] / "kernels"


def test_the_session_in_gdb_shows_rung_3_as_it_is() -> None:
    session = (KERNELS / "README.md").read_text().split("## Debug a kernel in gdb")[1].split("\n## ")[0]
    lines = (KERNELS / "conv2d" / "3_implicit_gemm.cu").read_text().splitlines()
    broken = [line for line in lines if "the tiles are complete" not in line]  # the barrier that the session leaves out
    assert len(broken) == len(lines) - 1
    shown = re.findall(r"^    (\d+)\t(.+)$", session, re.MULTILINE)
    assert len(shown) == 2
    for number, text in shown:
        assert broken[int(number) - 1] == text
        assert f"3_implicit_gemm.cu:{number}\n" in session
    loop = next(number for number, line in enumerate(lines, 1) if "sum += a_tile" in line)
    assert f"the loop is line {loop};" in session
    assert f"`break ...:{loop} if" in session
