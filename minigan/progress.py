"""Progress bars: tqdm's, for the threads of this process alone."""

from threading import RLock

from tqdm import tqdm

# tqdm's own lock is for several processes as well. For its semaphore Python 3.14 starts a process, which complains on
# the terminal when a signal ends this one.
tqdm.set_lock(RLock())

__all__ = ["tqdm"]
