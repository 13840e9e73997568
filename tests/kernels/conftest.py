"""Kernel tests build into a cache of their own, so that each run of the suite builds everything once.

But for machine code of NVIDIA's compiler: for sm_90a, on a GPU, that takes minutes, which `compile_all` has spent
before. And unless MINIGAN_CACHE names a folder, as CI does, whose planted bugs have built the same kernels there.
"""

import os
from collections.abc import Iterator

import pytest
from minigan.kernels.source import cache_folder


@pytest.fixture(autouse=True, scope="session")
def _own_build_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if "MINIGAN_CACHE" in os.environ:
        yield
        return
    folder, compiled = tmp_path_factory.mktemp("minigan-cache"), cache_folder("cubin").resolve()
    if compiled.is_dir():
        (folder / "cubin").symlink_to(compiled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIGAN_CACHE", str(folder))
        yield
