"""What the examples share: settings and command line, the run's folder, checkpoints, pictures, the loop."""

from minigan.training.command_line import Options, command_line
from minigan.training.dataset import Dataset
from minigan.training.loop import train
from minigan.training.restore import load_generator
from minigan.training.settings import Epochs, Settings
from minigan.training.system import Curves, System, mean_probability

__all__ = [
    "Curves",
    "Dataset",
    "Epochs",
    "Options",
    "Settings",
    "System",
    "command_line",
    "load_generator",
    "mean_probability",
    "train",
]
