"""A training step as one CUDA graph: what Python says once, the GPU repeats.

A step is hundreds of launches, and Python takes longer to ask for some of them than the GPU to do them. So the step is
captured once, and from then on replayed as a whole. For that
- its arrays keep their places: they come from a memory pool of its own, from which nobody else takes. Which of them may
  share a place follows from the order of the capture, in which the pool handed blocks out and got them back;
- what changes from step to step is read from device memory: see `minigan.capture`; the batch is copied to one place;
- a tensor that a step replaces by a new one (BEGAN's k) is copied back to where the next replay reads it;
- what a step does on the host alone stands in `System.schedule`.
The numbers are those of the step as Python runs it, to the last bit.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress

from minigan import debugging
from minigan.backend import array_module, is_cuda, matmul_precision, memory_errors, on_device
from minigan.capture import Capture, capturing
from minigan.distributed import world
from minigan.tensor import Tensor
from minigan.training.system import System

# Steps before the capture, as Python runs them: kernels are compiled, and libraries make what they keep.
WARM_UP = 3

Results = Mapping[str, Tensor | float]


class GraphedStep:
    """`system.step`, replayed. Where it cannot be captured, `say` is told why, once, and Python runs it as before.

    The tensors that it returns are overwritten by the next step.
    """

    def __init__(self, system: System, device: str, say: Callable[[str], object]) -> None:
        self.system, self.device, self.say = system, device, say
        self.warm = 0
        self.replayed = False
        self.problem = self._problem()
        if self.problem is None:
            self.cuda = array_module(device).cuda
            with on_device(device):  # a stream belongs to the GPU on which it is made
                self.stream, self.pool = self.cuda.Stream(), self.cuda.MemoryPool()
        else:
            self._give_up(self.problem)

    def _problem(self) -> str | None:
        if not is_cuda(self.device):
            return f"device {self.device} has no graphs"
        if world().size > 1:
            return "several ranks share the step"
        if matmul_precision(self.device) == "fp16":
            return "in fp16 the host decides after each step whether it counts"
        return "MINIGAN_DEBUG looks at every value" if debugging.checking else None

    def __call__(self, real: Tensor) -> Results:
        """One training step on real images (N, H, W, 3)."""
        if self.problem is None and not self.replayed and self.warm == WARM_UP:
            self._capture(real)
        if self.replayed:
            return self._replay(real)
        if self.problem is not None:
            return self.system.step(real)
        self.warm += 1
        with self._own_memory():
            return self.system.step(real)

    def _own_memory(self) -> ExitStack:
        """Inside, arrays come from the graph's own pool, and work goes to its stream."""
        inside = ExitStack()
        inside.enter_context(on_device(self.device))
        inside.enter_context(self.cuda.using_allocator(self.pool.malloc))
        inside.enter_context(self.stream)
        return inside

    def _capture(self, real: Tensor) -> None:
        """Has the step captured, which computes nothing and leaves the system as it was."""
        system = self.system
        self.state, numbers = dict(system.tensors()), dict(system.numbers)
        self.learned = [t for part in system.modules() for _, t in part.named_tensors()]
        failures: tuple[type[Exception], ...] = (RuntimeError, *memory_errors())
        trained = [t.requires_grad for t in self.learned]
        try:
            with self._own_memory():
                self.capture = Capture(self.device)
                self.real = Tensor(real.data.copy(), device=self.device)
                with capturing(self.capture):
                    self.stream.begin_capture()
                    try:
                        self._captured()
                    except BaseException:
                        with suppress(RuntimeError):  # a capture that failed cannot be ended well
                            self.stream.end_capture()
                        raise
                    self.graph = self.stream.end_capture()
            self.replayed = True
        except failures as error:
            self._give_up(f"{type(error).__name__}: {error}".splitlines()[0])
        finally:
            system.numbers = numbers
            for name, t in self.state.items():
                setattr(system, name, t)
            for t, value in zip(self.learned, trained, strict=True):
                t.requires_grad = value

    def _captured(self) -> None:
        results = self.system.step(self.real)
        # Copies: what is returned may be a tensor of the state, which changes at the end of the step.
        self.results = {
            name: Tensor(one.data.copy(), device=self.device) if isinstance(one, Tensor) else one
            for name, one in results.items()
        }
        after = self.system.tensors()
        for name, t in self.state.items():
            if after[name] is not t:
                t.data[...] = after[name].data

    def _replay(self, real: Tensor) -> Results:
        if real.shape != self.real.shape:
            raise ValueError(f"GraphedStep: expected a batch of {self.real.shape}, as captured, got {real.shape}")
        numbers = self.system.schedule()
        with on_device(self.device), self.stream:
            self.real.data[...] = real.data
            for name, t in self.system.tensors().items():
                if t is not self.state[name]:  # replaced since: at the end of an epoch, by a checkpoint
                    self.state[name].data[...] = t.data
                    setattr(self.system, name, self.state[name])
            self.capture.fill()
            self.graph.launch(self.stream)
        for t in self.learned:
            t.mark_changed()
        return {name: numbers.get(name, value) for name, value in self.results.items()}

    def _give_up(self, problem: str) -> None:
        self.problem = problem
        self.say(f"the step runs without a CUDA graph: {problem}")
