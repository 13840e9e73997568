"""Executes what NVRTC makes of the kernels, their PTX, without a GPU.

The emulator runs the kernels' C++ with a twin in place of each assembly instruction (ptx.cuh). Here the assembly itself
is executed, with what the compiler made of everything around it: operand order, constraints, fragment layouts,
descriptors. It was written from NVIDIA's manual ("PTX ISA"), as a second, independent reading. Read it in this order:

    text.py          PTX text -> parameters, registers, shared arrays, instructions
    lanes.py         which threads execute an instruction together
    block.py         registers, NumPy arrays with an element a thread; in which order the threads of a block execute
    scalar.py        what each thread does for itself: arithmetic, loads, stores
    rounding.py      PTX's roundings on NumPy arrays, to the last bit
    memory.py        global and shared memory; bounds, alignment, races
    tensor.py        what warps and warpgroups do together: shuffles, ldmatrix, mma, wgmma; barriers; copies
    asynchronous.py  what goes on beside the threads, as late as it may
    interpreter.py   launch(), which takes what the emulator's launch() takes

`with minigan.kernels.emulator.options(ptx=80):`, or MINIGAN_EMULATOR_PTX=80, sends every launch of the device
"emulated" here. An instruction, a modifier or a type that is not known raises; nothing is guessed.
"""

from .interpreter import launch, reachable
from .text import PtxError

__all__ = ["PtxError", "launch", "reachable"]
