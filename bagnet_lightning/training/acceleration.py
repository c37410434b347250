"""The training step as fast as a GPU allows: compiled by torch.compile, and recorded as CUDA graphs.

At batch 100 a step is hundreds of small kernels, and launching them one by one takes longer than they do. A graph
launches all at once. Augmentation is one graph; forward pass, loss, metrics and backward pass are another; the
optimizer stays outside, as one fused kernel or few, so that schedules, clipping and checkpoints work as ever. Muon's
update is hundreds of kernels, and a third graph. Lightning's loop runs as always: only what its hooks call is replaced.
"""

import gc
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.profilers import PassThroughProfiler
from torch import Tensor, nn
from torch.optim import Optimizer

from bagnet_lightning.data.module import ImageData
from bagnet_lightning.errors import UserError
from bagnet_lightning.training.batch_norm import WrittenOutBatchNorm2d, replaced
from bagnet_lightning.training.learner import Learner
from bagnet_lightning.training.muon import Muon

log = logging.getLogger(__name__)
WARM_UP = 3  # calls before one is recorded: libraries allocate and choose algorithms in the first ones
SWITCHES = ("compile", "fused_norm", "cuda_graph")  # of a configuration's trainer, and not of Lightning's
OLDEST_TORCH = "2.5"  # has torch.get_autocast_dtype and torch.OutOfMemoryError


class Compiled:
    """`function` of tensors, compiled for batches of `batch_size`; others (an epoch's last one) run as they are.

    required: whether a failing compiler is an error, or `function` is used as it is. autotune: let Inductor try many
    kernels; 1x1 convolutions become Triton's matrix products, with batch norm's scaling and ReLU fused into them where
    that is faster. seconds: what compiling took.
    """

    def __init__(self, function: Callable, batch_size: int, required: bool, autotune: bool = False):
        self.function, self.batch_size, self.required = function, batch_size, required
        options = {"max_autotune": True} if autotune else None  # the mode of that name also tunes what is elementwise
        self.compiled: Callable | None = torch.compile(function, dynamic=False, options=options)
        self.seconds = 0.0

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.compiled is None or len(inputs[0]) != self.batch_size:
            return self.function(*inputs)
        if self.seconds:
            return self.compiled(*inputs)
        started = time.perf_counter()
        try:
            # With its backward pass, which would else be compiled, and fail, where it is called.
            with torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
                return self.compiled(*inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the compilers of this machine lead to
            if self.required:
                raise
            log.warning("torch.compile failed, going on without it (trainer.compile=false): %s", _one_line(error))
            self.compiled = None
            return self.function(*inputs)
        finally:
            self.seconds = time.perf_counter() - started


class Graphed:
    """`function` of tensors on the GPU, from the fourth call on replayed from a CUDA graph.

    Only where `fits` says so: for batches of `batch_size`. What it returns is overwritten by the next replay. All that
    it reads and writes besides its inputs must stay where it is. required, seconds: as of Compiled, all calls before
    the first replay.
    """

    def __init__(self, function: Callable, batch_size: int, required: bool):
        self.function, self.batch_size, self.required = function, batch_size, required
        self.calls, self.seconds, self.failed = 0, 0.0, False
        self.graph: torch.cuda.CUDAGraph | None = None

    def fits(self, inputs: tuple[Tensor, ...]) -> bool:
        return len(inputs[0]) == self.batch_size

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.failed:
            return self.function(*inputs)
        if not self.fits(inputs):
            return self._plain(inputs)
        if self.graph is None:
            started = time.perf_counter()
            result = self._warm_up(inputs) if self.calls < WARM_UP else self._record(inputs)
            self.calls += 1
            torch.cuda.synchronize()
            self.seconds += time.perf_counter() - started
            if self.graph is None:
                return result
        for kept, given in zip(self.inputs, inputs, strict=True):
            kept.copy_(given)
        self.graph.replay()
        return self.result

    def _plain(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Of another size, as an epoch's last batch is: to search for its fastest convolutions would not pay."""
        searching, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
        try:
            return self.function(*inputs)
        finally:
            torch.backends.cudnn.benchmark = searching

    def _warm_up(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """A plain call on the stream that will be recorded: gradients remember the stream that they were made on."""
        if self.calls == 0:
            self.stream = torch.cuda.Stream()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = self.function(*inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def _record(self, inputs: tuple[Tensor, ...]) -> Tensor | None:
        """Recording computes nothing. Where it fails and is not `required`, all calls are plain from now on."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        self.inputs = [given.clone() for given in inputs]
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.result = self.function(*self.inputs)
        except Exception as error:
            torch.cuda.set_stream(current)  # torch leaves its own in place where the recording cannot be ended
            if self.required or isinstance(error, torch.OutOfMemoryError):
                raise
            # What ends a recording complains too, after what made it fail.
            log.warning("no CUDA graph (trainer.cuda_graph=false): %s", _one_line(error.__context__ or error))
            self.failed = True
            return self.function(*inputs)
        self.graph = graph
        return None


class GradientsGraphed(Graphed):
    """The loss of a batch, and its gradients in the parameters' .grad, replayed from a CUDA graph."""

    def __init__(self, module: Learner, batch_size: int, required: bool):
        super().__init__(self._loss_and_gradients, batch_size, required)
        self.module = module

    def __call__(self, *inputs: Tensor) -> Tensor:
        loss = super().__call__(*inputs)
        if self.graph is not None and self.fits(inputs) and not self.in_place:
            # A smaller batch, or validation, has put others in their place, or none.
            for parameter, gradient in self.gradients:
                parameter.grad = gradient
        return loss

    @property
    def in_place(self) -> bool:
        """Whether the parameters' gradients are those that the graph writes."""
        return self.graph is not None and self.gradients[0][0].grad is self.gradients[0][1]

    def _loss_and_gradients(self, *inputs: Tensor) -> Tensor:
        # None, and not zeros: the backward pass then hands over its results instead of adding them up.
        self.module.zero_grad(set_to_none=True)
        device = inputs[0].device.type
        dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        # Lightning's own autocast would remember casts of weights from before the recording.
        with torch.autocast(device, dtype, enabled, cache_enabled=False):
            loss = self.module.loss(*inputs)
        with torch.autocast(device, enabled=False):
            loss.backward()
        return loss.detach()

    def _record(self, inputs: tuple[Tensor, ...]) -> Tensor | None:
        self.module.zero_grad(set_to_none=True)
        result = super()._record(inputs)
        self.gradients = [(p, p.grad) for p in self.module.parameters() if p.grad is not None]
        return result


class UpdateGraphed(Graphed):
    """Muon's update, replayed from a CUDA graph while the gradients are those that another graph writes.

    The rates, which a schedule changes at every step, are tensors that are written before each replay.
    """

    def __init__(self, gradients: GradientsGraphed, required: bool):
        super().__init__(self._update, 0, required)
        self.gradients = gradients

    def attach(self, optimizer: Optimizer) -> None:
        """Has the steps of `optimizer`, if it is a Muon, updated from here; others have few kernels."""
        if isinstance(optimizer, Muon):
            self.optimizer, self.plain = optimizer, optimizer.update
            self.rates = [group["params"][0].new_zeros(()) for group in optimizer.param_groups]
            optimizer.update = self.set_rates_and_update

    def set_rates_and_update(self, rates: Sequence[float]) -> None:
        for kept, rate in zip(self.rates, rates, strict=True):
            kept.fill_(rate)
        self(*self.rates)

    def fits(self, inputs: tuple[Tensor, ...]) -> bool:
        return self.gradients.in_place and (self.graph is None or self.constants == self._constants())

    def _update(self, *rates: Tensor) -> None:
        self.plain(rates)

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        self.constants = self._constants()
        super()._record(inputs)

    def _constants(self) -> list[tuple[float, float]]:
        """What the graph holds as numbers."""
        return [(group["momentum"], group["weight_decay"]) for group in self.optimizer.param_groups]


class NoProfiler(PassThroughProfiler):
    """Lightning enters a profiler some 70 times a step, around each hook of each callback: this one costs the least."""

    nothing = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager:
        return self.nothing


def accelerate(
    module: Learner,
    data: ImageData,
    trainer: Trainer,
    compile: bool | str,
    fused_norm: bool | str,
    cuda_graph: bool | str,
) -> None:
    """Has the step compiled, with batch norms that fuse well, and recorded, each where asked for or "auto" and it pays.

    Raises UserError for what is asked for and not possible.
    """
    size = data.batch_size
    inputs = size * module.inputs_per_image
    compiling = _wanted("compile", compile, _no_compiling(trainer, compile))
    if _wanted("fused_norm", fused_norm, _no_fusing(trainer, fused_norm, compiling)):
        replaced(module, nn.BatchNorm2d, WrittenOutBatchNorm2d)
    if compiling:
        # Models, batch sizes and precisions of a sweep, in one process. (recompile_limit is its name in newer torch.)
        torch._dynamo.config.cache_size_limit = 64
        required, autotune = compile != "auto", compile == "max-autotune"
        module.forward_pass = Compiled(module.forward_pass, inputs, required, autotune)
        if trainer.strategy.root_device.type == "cuda":
            data.augmented = Compiled(data.augmented, size, required)
    if _wanted("cuda_graph", cuda_graph, _no_graph(trainer)):
        required = cuda_graph is True
        data.augmented = Graphed(data.augmented, size, required)
        module.gradients = GradientsGraphed(module, inputs, required)
        module.recorded_update = UpdateGraphed(module.gradients, required)
    if trainer.strategy.root_device.type == "cuda":  # room, of which an earlier run of this process may hold much
        gc.collect()
        torch.cuda.empty_cache()


def compile_seconds(module: Learner, data: ImageData) -> float:
    """What compiling and recording took in this process, the few steps that were taken meanwhile included."""
    parts = (module.gradients or module.forward_pass, module.recorded_update, data.augmented)
    return sum(getattr(part, "seconds", 0.0) for part in parts)


def accelerated(module: Learner, data: ImageData) -> dict[str, bool]:
    """Whether the training in this process ran compiled and from CUDA graphs, none of which failed."""
    forward, graphs = module.forward_pass, (data.augmented, module.gradients, module.recorded_update)
    return {
        "compiled": isinstance(forward, Compiled) and forward.compiled is not None and forward.seconds > 0,
        "cuda_graph": isinstance(module.gradients, Graphed)
        and module.gradients.graph is not None
        and not any(graph.failed for graph in graphs),
    }


def _wanted(name: str, asked: bool | str, hindrance: str | None) -> bool:
    if asked not in (False, "auto") and hindrance:
        raise UserError(f"trainer.{name}={str(asked).lower()} is not possible {hindrance}; leave it at auto")
    if asked == "auto" and hindrance:
        log.debug("trainer.%s is off %s", name, hindrance)
    return asked is not False and hindrance is None


def _no_compiling(trainer: Trainer, asked: bool | str) -> str | None:
    if trainer.world_size > 1:
        return "with several processes"
    if torch.__version__ < OLDEST_TORCH:
        return f"before torch {OLDEST_TORCH}"
    if asked == "auto":  # what can be done, but does not pay or is not exactly repeatable
        if trainer.strategy.root_device.type != "cuda":
            return "on the CPU, where it gains little"
        if torch.are_deterministic_algorithms_enabled():
            return "with trainer.deterministic=true"
        if torch.cuda.get_device_capability() < (7, 0) or find_spec("triton") is None:
            return "without Triton and a GPU of compute capability 7.0"
    return None


def _no_fusing(trainer: Trainer, asked: bool | str, compiling: bool) -> str | None:
    if not compiling:
        return "without trainer.compile"
    if asked == "auto" and trainer.strategy.root_device.type == "cuda":
        return "on a GPU, where nobody has measured it"
    return None


def _no_graph(trainer: Trainer) -> str | None:
    if trainer.strategy.root_device.type != "cuda":
        return "without an NVIDIA GPU"
    if torch.cuda.get_device_capability() < (7, 0):
        return "below compute capability 7.0"
    if torch.__version__ < OLDEST_TORCH:
        return f"before torch {OLDEST_TORCH}"
    if trainer.world_size > 1:
        return "with several processes"
    if trainer.accumulate_grad_batches > 1:
        return "with trainer.accumulate_grad_batches above 1"
    if trainer.precision == "16-mixed":
        return "with trainer.precision=16-mixed, which scales the loss"
    return None


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
