"""Muon: Nesterov SGD whose steps of hidden filters and matrices are orthogonalised (Jordan et al. 2024)."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial

import torch
from torch import Tensor
from torch.optim import Optimizer

from bagnet_lightning.machine.device import multiplies_bfloat16

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients: small singular values grow fastest
ITERATIONS = 5
STREAMS = 4


class Muon(Optimizer):
    """Moves filters (O, I, k, k) by `lr` times matrices (O, I k k) whose singular values are about 1, tiny ones aside.

    Matrices (O, I) likewise. Other parameters (norms, biases), and those whose attribute `hidden` is False (the
    classifier's), are updated as by Nesterov SGD with the same `lr`. weight_decay: decoupled, multiplied by `lr`.
    torch.optim.Muon takes matrices only, each by itself; here those of one shape are one batch.
    """

    def __init__(self, params: Iterable, lr: float, momentum: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = closure() if closure else None
        self.update([group["lr"] for group in self.param_groups])
        return loss

    @torch.no_grad()
    def update(self, rates: Sequence[float | Tensor]) -> None:
        """Updates parameters with gradients. rates: learning rate of each group; kernels read tensors when they run."""
        for group, rate in zip(self.param_groups, rates, strict=True):
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            hidden = [getattr(p, "hidden", True) for p in parameters]
            steps = orthogonal_filters(self._nesterov(parameters, group["momentum"]), hidden)
            torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
            if isinstance(rate, Tensor):
                torch._foreach_mul_(steps, rate)
                torch._foreach_sub_(parameters, steps)
            else:
                torch._foreach_add_(parameters, steps, alpha=-rate)

    def _nesterov(self, parameters: list[Tensor], momentum: float) -> list[Tensor]:
        gradients = [p.grad for p in parameters]
        for p in parameters:
            if p not in self.state:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        return torch._foreach_add(gradients, buffers, alpha=momentum)


def orthogonal_filters(steps: list[Tensor], hidden: list[bool]) -> list[Tensor]:
    """Returns `steps` with filters and matrices orthogonalised, and scaled by sqrt(O / (I k k)) if tall.

    Others, and those that are not `hidden`, are unchanged.
    """
    groups = defaultdict(list)  # indices of the filters whose matrices, transposed if tall, have one shape
    for index, step in enumerate(steps):
        if step.ndim in (2, 4) and hidden[index]:
            groups[tuple(sorted((len(step), step[0].numel())))].append(index)
    ordered = [groups[shape] for shape in sorted(groups, reverse=True)]  # the longest jobs first
    results = _run_in_streams([partial(_orthogonal, [steps[index] for index in group]) for group in ordered], steps)
    steps = [*steps]
    for group, filters in zip(ordered, results, strict=True):
        for index, result in zip(group, filters, strict=True):
            steps[index] = result
    return steps


def _orthogonal(filters: list[Tensor]) -> list[Tensor]:
    # In the order (O, k, k, I) of channels_last memory: the order of columns does not matter.
    matrices = [step.permute(0, 2, 3, 1).flatten(1) if step.ndim == 4 else step for step in filters]
    tall = [len(matrix) > matrix.shape[1] for matrix in matrices]
    wide = torch.stack([matrix.T if is_tall else matrix for matrix, is_tall in zip(matrices, tall, strict=True)])
    orthogonal = orthogonalized(wide)
    scale = max(1.0, orthogonal.shape[2] / orthogonal.shape[1]) ** 0.5
    results = []
    for step, matrix, is_tall in zip(filters, orthogonal, tall, strict=True):
        matrix = (matrix.T * scale).contiguous() if is_tall else matrix
        if step.ndim == 4:
            outputs, inputs, height, width = step.shape
            matrix = matrix.view(outputs, height, width, inputs).permute(0, 3, 1, 2)
        results.append(matrix)
    return results


def orthogonalized(matrices: Tensor) -> Tensor:
    """Moves singular values of (N, m, n), m <= n, to about 1 (0.6 to 1.2, tiny ones to less), by Newton-Schulz.

    Computed in bfloat16, which is precise enough (Jordan et al. 2024), where its products are fast: on GPUs since
    Ampere and on CPUs with AMX, where this is about three times as fast.
    """
    a, b, c = QUINTIC
    x = matrices.bfloat16() if multiplies_bfloat16(matrices.device) else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)


def _run_in_streams(jobs: list[Callable[[], list[Tensor]]], tensors: list[Tensor]) -> list[list[Tensor]]:
    """Returns the results of `jobs` on `tensors`: on a GPU in parallel streams, since no small product fills it."""
    if not tensors[0].is_cuda:
        return [job() for job in jobs]
    current, results = torch.cuda.current_stream(), []
    streams = _streams(tensors[0].device)[: len(jobs)]
    for number, job in enumerate(jobs):
        if number < len(streams):
            streams[number].wait_stream(current)
        with torch.cuda.stream(streams[number % len(streams)]):
            results.append(job())
    for stream in streams:
        current.wait_stream(stream)
    return results


@cache
def _streams(device: torch.device) -> list[torch.cuda.Stream]:
    return [torch.cuda.Stream(device) for _ in range(STREAMS)]
