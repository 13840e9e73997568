"""What environment variables say. They are for what is a machine's, or a day's, and not a program's."""

import os

# Those that are 0 or 1, and which of them holds where nothing is said.
SWITCHES = {"MINIGAN_AUTOTUNE": False, "MINIGAN_DEBUG": False, "MINIGAN_WINOGRAD": True}


class SettingError(ValueError):
    """An environment variable has a value that it cannot have; the message says which, and what was expected."""


def switch(name: str) -> bool:
    """Whether one of SWITCHES is on. Raises SettingError for what is neither 0 nor 1."""
    text = os.environ.get(name) or str(int(SWITCHES[name]))
    if text not in ("0", "1"):
        raise SettingError(f"{name}: expected 0 or 1, got {text!r}")
    return text == "1"


def check_switches() -> None:
    """Raises SettingError where one of SWITCHES is neither 0 nor 1: before anything is begun that would use it."""
    for name in SWITCHES:
        switch(name)
