"""What `python -m minigan` can do. A file is a command: `add_to(commands)` adds its options, `run(given)` does it."""
