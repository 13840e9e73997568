"""What `python -m minigan` can do: a file for each command, with `add_to(commands)` for its options and `run(given)`."""
