"""`python -m minigan`: what is here and what is missing, and what can be done with data and with finished runs."""

import sys

import minigan as mg
from minigan.commands import data, doctor, export, generate, interpolate, report
from minigan.data import DataError
from minigan.distributed import world
from minigan.environment import SettingError, check_switches
from minigan.kernels import EmulatorError
from minigan.serialization import CheckpointError
from minigan.training.command_line import OneLineParser, fail, quiet_pipes
from minigan.training.errors import UserError

COMMANDS = (doctor, data, generate, interpolate, export, report)


@quiet_pipes()
def main(arguments: list[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m minigan", description=__doc__)
    parser.set_defaults(run=doctor.run)
    commands = parser.add_subparsers(metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(commands)
    given = parser.parse_args(arguments)
    try:
        check_switches()
        given.run(given)
    except (UserError, DataError, CheckpointError, SettingError, mg.DeviceError, EmulatorError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        world().exit(130, "stopped")


if __name__ == "__main__":
    main(sys.argv[1:])
