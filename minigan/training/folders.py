"""Where runs are: runs/cats-0001, runs/cats-0002 ..., unless the user says otherwise."""

from pathlib import Path

from minigan.training.errors import UserError

PLACE = Path("runs")


def runs_of(system: str) -> list[Path]:
    """The folders of a system's runs, the oldest first."""
    return sorted(PLACE.glob(f"{system}-[0-9][0-9][0-9][0-9]"))


def latest_run(system: str) -> Path:
    """The last of them. Raises UserError where there is none."""
    found = runs_of(system)
    if not found:
        raise UserError(f"--resume: there is no run {PLACE}/{system}-NNNN here; name its folder with --out")
    return found[-1]
