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


def run_folder(path: Path) -> Path:
    """The folder of the run that is named by it, or by one of its checkpoints."""
    return path.parent.parent if path.is_file() else path
