"""`python -m minigan report RUN`: one page that says how a run went."""

import argparse
from pathlib import Path
from typing import Any

from minigan.training.report import write_report


def add_to(commands: Any) -> None:
    command = commands.add_parser(
        "report",
        help="a page about a run: losses, health, samples, settings",
        description="Writes one HTML page about a run, finished or not, that needs no other file.",
    )
    command.set_defaults(run=run)
    command.add_argument("folder", type=Path, metavar="RUN", help="a run's folder, finished or not")
    command.add_argument("--out", type=Path, metavar="PATH", help="an .html file, written anew (RUN/report.html)")


def run(given: argparse.Namespace) -> None:
    path = write_report(given.folder, given.out)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB; open it in a browser")
