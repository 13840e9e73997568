"""What all tests share: the benchmarks beside them, and how many threads other libraries than minigan have."""

import os
import sys
from pathlib import Path

# The benchmarks are scripts beside each other, not a package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

# PyTorch's and OpenBLAS's own threads wait for each other without sleep, which takes more of the processors than all
# that the tests let them compute. They ask once, when they are loaded. minigan's threads are as many as ever.
os.environ.setdefault("OMP_NUM_THREADS", "1")
