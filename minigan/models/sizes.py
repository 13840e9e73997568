"""Which image sizes an architecture allows."""

from minigan.ops.geometry import Pair, pair


def divided(system: str, image_size: int | Pair, factor: int) -> Pair:
    """(height, width) over `factor`. Raises ValueError, naming sizes that do, where that is not whole."""
    height, width = pair(f"{system}: image_size", image_size, 1)
    if height % factor or width % factor:
        near = sorted({max(1, round(n / factor)) * factor for n in (height, width)})
        raise ValueError(
            f"{system}: expected an image size of multiples of {factor} (such as {', '.join(map(str, near))}), "
            f"got {height} x {width}"
        )
    return height // factor, width // factor
