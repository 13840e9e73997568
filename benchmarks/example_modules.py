"""The examples as modules, for the benchmarks and the tests."""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

EXAMPLE_FOLDER = Path(__file__).resolve().parents[1] / "examples"
EXAMPLES = {
    "cats": "dcgan_cats",
    "simpsons": "dcgan_simpsons",
    "anime": "dcgan_anime",
    "maxpool": "gan_maxpool",
    "began": "began_faces",
}


@cache
def load_example(system: str) -> ModuleType:
    """The example of a system, such as examples/dcgan_cats.py for cats."""
    name = EXAMPLES[system]
    spec = importlib.util.spec_from_file_location(name, EXAMPLE_FOLDER / f"{name}.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"expected the example {EXAMPLE_FOLDER / name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
