"""The training step as fast as a GPU allows: compiled by torch.compile, and recorded as CUDA graphs.

At batch size 100 a step is hundreds of small kernels, and launching them one by one takes longer than running them. A
graph launches all at once. Augmentation is one graph; forward pass, loss, metrics and backward pass are another; the
optimizer stays outside, as one fused kernel or few, so that schedules, clipping and checkpoints work as usual. Muon's
update is hundreds of kernels, and a third graph. Lightning's loop is unchanged: only the functions that its hooks call
are replaced.
"""

import gc
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.profilers import PassThroughProfiler
from torch import Tensor, nn

from bagnet_lightning.data.image_data import ImageData
from bagnet_lightning.errors import UserError, in_one_line
from bagnet_lightning.training.batch_norm import WrittenOutBatchNorm2d, replace_batch_norms
from bagnet_lightning.training.cuda_graphs import GradientsGraphed, Graphed, UpdateGraphed
from bagnet_lightning.training.learner import Learner

log = logging.getLogger(__name__)
SWITCHES = ("compile", "fused_norm", "cuda_graph")  # settings of config.trainer that Lightning's Trainer lacks
OLDEST_TORCH = "2.5"  # has torch.get_autocast_dtype and torch.OutOfMemoryError


class Compiled:
    """A function of tensors, compiled for batches of `batch_size`; other sizes (an epoch's last one) run uncompiled.

    required: whether a compiler failure is an error, or `function` is used uncompiled. autotune: let Inductor try many
    kernels; 1x1 convolutions become Triton's matrix products, with batch norm's scaling and ReLU fused into them where
    that is faster. seconds: the time that compiling took.
    """

    def __init__(self, function: Callable, batch_size: int, required: bool, autotune: bool = False):
        self.function, self.batch_size, self.required = function, batch_size, required
        options = {"max_autotune": True} if autotune else None  # mode="max-autotune" also tunes elementwise kernels
        self.compiled: Callable | None = torch.compile(function, dynamic=False, options=options)
        self.seconds = 0.0

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.compiled is None or len(inputs[0]) != self.batch_size:
            return self.function(*inputs)
        if self.seconds:
            return self.compiled(*inputs)
        started = time.perf_counter()
        try:
            # Compiles the backward pass too, which would otherwise be compiled, and fail, when it is called.
            settings, option = torch._functorch.config, "force_non_lazy_backward_lowering"
            with settings.patch({option: True} if hasattr(settings, option) else {}):  # in newer torch
                return self.compiled(*inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers raise errors of many types
            if self.required:
                raise
            log.warning("torch.compile failed, going on without it (trainer.compile=false): %s", in_one_line(error))
            self.compiled = None
            return self.function(*inputs)
        finally:
            self.seconds = time.perf_counter() - started


class NoProfiler(PassThroughProfiler):
    """The cheapest profiler: Lightning enters one some 70 times a step, around each hook of each callback."""

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
    """Compiles the step, with batch norms that fuse well, and records it: each if set, or if "auto" and it pays off.

    Raises UserError if one is set but not possible.
    """
    size = data.batch_size
    inputs = size * module.inputs_per_image
    compiling = _enabled("compile", compile, _no_compiling(trainer, compile))
    if _enabled("fused_norm", fused_norm, _no_fusing(trainer, fused_norm, compiling)):
        replace_batch_norms(module, nn.BatchNorm2d, WrittenOutBatchNorm2d)
    if compiling:
        configure_compiler()
        required, autotune = compile != "auto", compile == "max-autotune"
        module.forward_pass = Compiled(module.forward_pass, inputs, required, autotune)
        if trainer.strategy.root_device.type == "cuda":
            data.augmented = Compiled(data.augmented, size, required)
    if _enabled("cuda_graph", cuda_graph, _no_graph(trainer)):
        required = cuda_graph is True
        data.augmented = Graphed(data.augmented, size, required)
        module.gradients = GradientsGraphed(module, inputs, required)
        module.recorded_update = UpdateGraphed(module.gradients, required)
    if trainer.strategy.root_device.type == "cuda":  # an earlier run of this process may still hold much memory
        gc.collect()
        torch.cuda.empty_cache()


def configure_compiler() -> None:
    """Sets torch's own switches, of which what it keeps on disk depends."""
    # A sweep compiles many models, batch sizes and precisions in one process. (recompile_limit in newer torch.)
    torch._dynamo.config.cache_size_limit = 64
    if hasattr(torch._inductor.config, "use_fast_triton_launcher"):
        # In torch 2.13 it may call kernels that have been unloaded (pytorch issue 188607); graphs do not need it.
        torch._inductor.config.use_fast_triton_launcher = False


def compile_seconds(module: Learner, data: ImageData) -> float:
    """Returns the seconds of compiling and recording in this process, including the few steps taken meanwhile."""
    parts = (module.gradients or module.forward_pass, module.recorded_update, data.augmented)
    return sum(getattr(part, "seconds", 0.0) for part in parts)


def acceleration_used(module: Learner, data: ImageData) -> dict[str, bool]:
    """Returns whether training in this process ran compiled, and whether from CUDA graphs, none of which failed."""
    graphs = (data.augmented, module.gradients, module.recorded_update)
    augmented = data.augmented.function if isinstance(data.augmented, Graphed) else data.augmented
    functions = [function for function in (module.forward_pass, augmented) if isinstance(function, Compiled)]
    return {
        "compiled": bool(functions) and all(f.compiled is not None and f.seconds > 0 for f in functions),
        "cuda_graph": isinstance(module.gradients, Graphed)
        and module.gradients.graph is not None
        and not any(graph.failed for graph in graphs),
    }


def _enabled(name: str, setting: bool | str, obstacle: str | None) -> bool:
    if setting not in (False, "auto") and obstacle:
        raise UserError(f"trainer.{name}={str(setting).lower()} is not possible {obstacle}; leave it at auto")
    if setting == "auto" and obstacle:
        log.debug("trainer.%s is off %s", name, obstacle)
    return setting is not False and obstacle is None


def _no_compiling(trainer: Trainer, setting: bool | str) -> str | None:
    if trainer.world_size > 1:
        return "with several processes"
    if torch.__version__ < OLDEST_TORCH:
        return f"before torch {OLDEST_TORCH}"
    if setting == "auto":  # possible, but does not pay off or is not exactly reproducible
        if trainer.strategy.root_device.type != "cuda":
            return "on the CPU, where it gains little"
        if torch.are_deterministic_algorithms_enabled():
            return "with trainer.deterministic=true"
        if torch.cuda.get_device_capability() < (7, 0) or find_spec("triton") is None:
            return "without Triton and a GPU of compute capability 7.0"
    return None


def _no_fusing(trainer: Trainer, setting: bool | str, compiling: bool) -> str | None:
    if not compiling:
        return "without trainer.compile"
    if setting == "auto" and trainer.strategy.root_device.type == "cuda":
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
