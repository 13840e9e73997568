"""Progress bars."""

import subprocess
import sys

BAR = """
import sys
from minigan.progress import tqdm
with tqdm(total=2, disable=False) as bar:
    bar.update()
    bar.write("a line")
print("multiprocessing.synchronize" in sys.modules)
"""


def test_a_bar_has_no_lock_for_other_processes() -> None:
    done = subprocess.run([sys.executable, "-c", BAR], capture_output=True, text=True, check=True)
    assert done.stdout == "a line\nFalse\n"
    assert "1/2" in done.stderr
