"""A run in TensorBoard. It takes tensorboardX, which the extra `watch` brings."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from minigan.training.errors import UserError


def expect_installed() -> None:
    """Raises UserError where tensorboardX is not."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise UserError("--tensorboard: tensorboardX is not installed: pip install 'minigan[watch]'")


class Board:
    """Scalars and sample grids in `folder`, for `tensorboard --logdir`.

    first: the step that a resumed run stands at; what an earlier one wrote after it is forgotten.
    """

    def __init__(self, folder: Path, first: int) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first + 1)

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def add_picture(self, step: int, picture: np.ndarray) -> None:
        """picture: uint8 (H, W, 3)."""
        self._writer.add_image("samples", picture, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
