"""What tests of several folders share: the published sizes of the networks, and networks in float64."""

from typing import Any

import numpy as np
import pytest

import minigan as mg
from minigan import models

# systems.md's counts of trainable parameters: generator, discriminator.
PARAMETERS = {
    "cats": (24_034_819, 17_484_289),
    "simpsons": (24_034_819, 17_484_289),
    "anime": (3_614_723, 2_766_529),
    "maxpool": (4_768_899, 20_887_809),
    "began": (1_716_611, 11_192_643),
}


def compute_in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """New networks and tensors are float64, and so everything that an example makes of them."""
    build, tensor = models.build, mg.tensor

    def build_in_double(*args: Any, **keywords: Any) -> Any:
        networks = build(*args, **keywords)
        for network in networks:
            for _, t in network.named_tensors():
                t._data = t.data.astype(np.float64)
                t.dtype = t.data.dtype
        return networks

    monkeypatch.setattr(models, "build", build_in_double)
    monkeypatch.setattr(mg, "tensor", lambda data, device: tensor(data, device=device, dtype=np.float64))
