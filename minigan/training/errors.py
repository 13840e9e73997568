"""The mistakes that a user can make, and the only ones that are reported without a traceback."""


class UserError(Exception):
    """Something outside the program has to be changed: an option, a file, a folder. One line says what."""
