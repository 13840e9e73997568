"""A trained generator, back from the disk."""

import json
from pathlib import Path

from minigan import models, serialization
from minigan.backend import resolve_device
from minigan.training.errors import UserError
from minigan.training.run import checkpoints_in

ARCHITECTURE = ("image_size", "base_channels", "z_size")


def load_generator(run: Path | str, device: str | None = None) -> models.Generator:
    """The generator of a run's last checkpoint, or of the checkpoint that is named. Three lines make images of it:

        generator = load_generator("runs/cats-0001")
        z = generator.noise(16)
        images = generator.generate(z)  # uint8 (16, H, W, 3)

    Raises UserError where there is no such run, and CheckpointError for a damaged checkpoint.
    """
    run = Path(run)
    if run.is_file() and run.suffix != ".safetensors":
        raise UserError(f"{run}: expected a run's folder or a checkpoint, which is a .safetensors file")
    path = run if run.is_file() else next(reversed(checkpoints_in(run)), None)
    if path is None:
        raise UserError(f"{run}: expected a run's folder with a checkpoint in it, or a checkpoint")
    config = path.parent.parent / "config.json"
    try:
        written = json.loads(config.read_text())
        overrides = {name: written["settings"][name] for name in ARCHITECTURE}
        generator, _ = models.build(written["system"], **overrides)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{config}: expected the settings of the run beside its checkpoints: {error}") from None
    tensors, _ = serialization.load_checkpoint(path)
    prefix = "average/" if written.get("average") else "generator/"
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    try:
        generator.load_state_dict(own)
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: does not fit {config}: {error.args[0]}") from None
    generator.to(resolve_device(device))
    return generator
