"""Functions whose kernels are recorded once, as a CUDA graph, and launched all at once from then on."""

import gc
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, cached_property

import torch
from torch import Tensor
from torch.optim import Optimizer

from bagnet_lightning.errors import in_one_line
from bagnet_lightning.training.learner import Learner
from bagnet_lightning.training.muon import Muon

log = logging.getLogger(__name__)
WARM_UP = 3  # calls before the recording: libraries allocate and choose algorithms in the first ones


class Graphed:
    """A function of tensors on the GPU, replayed from a CUDA graph from the fourth call on.

    Only for inputs that pass `fits`: batches of `batch_size`. The result is overwritten by the next replay. All tensors
    that it reads and writes besides its inputs must keep their addresses. required: as in Compiled. seconds: the time
    of all calls before the first replay.
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
        for buffer, value in zip(self.inputs, inputs, strict=True):
            buffer.copy_(value)
        self.graph.replay()
        return self.result

    def _plain(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Calls it for another size, as an epoch's last batch: a search for the fastest kernels would not pay off."""
        searching, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
        try:
            return self.function(*inputs)
        finally:
            torch.backends.cudnn.benchmark = searching

    @cached_property
    def stream(self) -> torch.cuda.Stream:
        """The stream of warm-up and recording.

        From torch 2.12 on a graph has one of its own: at its end torch frees cuBLAS's workspace for its stream, which
        another graph of the same stream would go on using (pytorch issue 193402).
        """
        return _shared_stream() if torch.__version__ < "2.12" else torch.cuda.Stream()

    def _warm_up(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Calls the function on the stream of the recording: gradients remember the stream that they were made on."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = self.function(*inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def _record(self, inputs: tuple[Tensor, ...]) -> Tensor | None:
        """Records the graph, computing nothing. If that fails and is not `required`, later calls use no graph."""
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        current = torch.cuda.current_stream()
        self.inputs = [value.clone() for value in inputs]
        gc.collect()
        gc.disable()  # what it frees on the GPU would break the recording
        try:
            with torch.cuda.graph(graph, pool, self.stream):
                self.result = self.function(*self.inputs)
        except Exception as error:
            # If a recording cannot be ended, torch leaves its stream set, and before 2.12 its memory pool too, on which
            # the next empty_cache would fail.
            torch.cuda.set_stream(current)
            if torch.__version__ < "2.12":
                with suppress(RuntimeError, AttributeError):  # already ended, or named differently before 2.8
                    torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
                    torch._C._cuda_releasePool(torch.cuda.current_device(), pool)
            if self.required or isinstance(error, torch.OutOfMemoryError):
                raise
            # Ending the recording raises too, after the error that made it fail.
            log.warning("no CUDA graph (trainer.cuda_graph=false): %s", in_one_line(error.__context__ or error))
            self.failed = True
            return self.function(*inputs)
        finally:
            gc.enable()
        self.graph = graph
        return None


@cache
def _shared_stream() -> torch.cuda.Stream:
    """Returns one stream for all recordings of a process: older torch keeps cuBLAS's workspace for each, 32 MiB."""
    return torch.cuda.Stream()


class GradientsGraphed(Graphed):
    """The loss of a batch, and its gradients in the parameters' .grad, replayed from a CUDA graph."""

    def __init__(self, module: Learner, batch_size: int, required: bool):
        super().__init__(self._loss_and_gradients, batch_size, required)
        self.module = module

    def __call__(self, *inputs: Tensor) -> Tensor:
        loss = super().__call__(*inputs)
        if self.graph is not None and self.fits(inputs) and not self.in_place:
            # A smaller batch, or validation, has replaced or removed them.
            for parameter, gradient in self.gradients:
                parameter.grad = gradient
        return loss

    @property
    def in_place(self) -> bool:
        """Whether the parameters' gradients are those that the graph writes."""
        return self.graph is not None and self.gradients[0][0].grad is self.gradients[0][1]

    def _loss_and_gradients(self, *inputs: Tensor) -> Tensor:
        # To None, not to zeros: the backward pass then stores its results instead of adding them to zeros.
        self.module.zero_grad(set_to_none=True)
        device = inputs[0].device.type
        dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        # Lightning's own autocast would reuse casts of weights from before the recording.
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
    """Muon's update, replayed from a CUDA graph while the gradients are those that GradientsGraphed writes.

    The learning rates, which a schedule changes at every step, are tensors that are written before each replay.
    """

    def __init__(self, gradients: GradientsGraphed, required: bool):
        super().__init__(self._update, 0, required)
        self.gradients = gradients

    def attach(self, optimizer: Optimizer) -> None:
        """Replaces the update of `optimizer` with this one if it is a Muon; other optimizers have few kernels."""
        if isinstance(optimizer, Muon):
            self.optimizer, self.plain = optimizer, optimizer.update
            like = next(self.gradients.module.parameters())  # a group may be empty
            self.rates = [like.new_zeros(()) for _ in optimizer.param_groups]
            optimizer.update = self.set_rates_and_update

    def set_rates_and_update(self, rates: Sequence[float]) -> None:
        for buffer, rate in zip(self.rates, rates, strict=True):
            buffer.fill_(rate)
        self(*self.rates)

    def fits(self, inputs: tuple[Tensor, ...]) -> bool:
        return self.gradients.in_place and (self.graph is None or self.constants == self._constants())

    def _update(self, *rates: Tensor) -> None:
        self.plain(rates)

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        self.constants = self._constants()
        super()._record(inputs)

    def _constants(self) -> list[tuple[float, float]]:
        """Returns the momentum and weight decay of each group, which the graph holds as constants."""
        return [(group["momentum"], group["weight_decay"]) for group in self.optimizer.param_groups]
