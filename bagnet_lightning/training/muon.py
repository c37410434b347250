"""Muon: Nesterov SGD whose steps of convolution filters are orthogonalised (Jordan et al. 2024)."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial

import torch
from torch import Tensor
from torch.optim import Optimizer

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients: small singular values grow fastest
ITERATIONS = 5
STREAMS = 4


class Muon(Optimizer):
    """A filter (O, I, k, k) moves by `lr` times a matrix (O, I k k) whose singular values are about 1, tiny ones aside.

    What is no filter (norms, biases, the classifier) moves as by Nesterov SGD of the same `lr`. weight_decay:
    decoupled, as a share of `lr`. torch.optim.Muon takes matrices only, each by itself; here filters of one shape are
    one batch.
    """

    def __init__(self, params: Iterable, lr: float, momentum: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = closure() if closure else None
        self.update([group["lr"] for group in self.param_groups])
        return loss

    @torch.no_grad()
    def update(self, rates: Sequence[float | Tensor]) -> None:
        """Moves what has gradients. rates: each group's; as tensors on the device, they are read when kernels run."""
        for group, rate in zip(self.param_groups, rates, strict=True):
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            steps = orthogonal_filters(self._nesterov(parameters, group["momentum"]))
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


def orthogonal_filters(steps: list[Tensor]) -> list[Tensor]:
    """The filters among `steps` orthogonalised, and longer by sqrt(O / (I k k)) if tall; the others as they are."""
    groups = defaultdict(list)  # places of the filters whose matrices, lying on their longer side, are of one shape
    for place, step in enumerate(steps):
        if step.ndim == 4:
            groups[tuple(sorted((len(step), step[0].numel())))].append(place)
    places = [groups[shape] for shape in sorted(groups, reverse=True)]  # the longest work first
    made = _side_by_side([partial(_orthogonal, [steps[place] for place in group]) for group in places], steps)
    steps = [*steps]
    for group, filters in zip(places, made, strict=True):
        for place, made_of_it in zip(group, filters, strict=True):
            steps[place] = made_of_it
    return steps


def _orthogonal(filters: list[Tensor]) -> list[Tensor]:
    # In the order (O, k, k, I), which is that of channels_last memory: the order of columns is of no account.
    matrices = [step.permute(0, 2, 3, 1).flatten(1) for step in filters]
    tall = [len(matrix) > matrix.shape[1] for matrix in matrices]
    wide = torch.stack([matrix.T if is_tall else matrix for matrix, is_tall in zip(matrices, tall, strict=True)])
    made = orthogonalized(wide)
    longer = max(1.0, made.shape[2] / made.shape[1]) ** 0.5
    back = []
    for step, matrix, is_tall in zip(filters, made, tall, strict=True):
        outputs, inputs, height, width = step.shape
        matrix = (matrix.T * longer).contiguous() if is_tall else matrix
        back.append(matrix.view(outputs, height, width, inputs).permute(0, 3, 1, 2))
    return back


def orthogonalized(matrices: Tensor) -> Tensor:
    """(N, m, n), m <= n, with singular values moved to about 1 (0.6 to 1.2, the tiny ones to less), by Newton-Schulz.

    They are in bfloat16, which is enough (Jordan et al. 2024), where its products are the fast ones: GPUs since Ampere
    and CPUs with AMX, where this is about three times as fast.
    """
    a, b, c = QUINTIC
    x = matrices.bfloat16() if _multiplies_bfloat16(matrices.device) else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)


def _side_by_side(jobs: list[Callable[[], list[Tensor]]], tensors: list[Tensor]) -> list[list[Tensor]]:
    """The results of `jobs` on `tensors`: on a GPU in streams of their own, since no small product fills it."""
    if not tensors[0].is_cuda:
        return [job() for job in jobs]
    here, results = torch.cuda.current_stream(), []
    streams = _streams(tensors[0].device)[: len(jobs)]
    for number, job in enumerate(jobs):
        if number < len(streams):
            streams[number].wait_stream(here)
        with torch.cuda.stream(streams[number % len(streams)]):
            results.append(job())
    for stream in streams:
        here.wait_stream(stream)
    return results


@cache
def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16", False)  # torch before 2.13 cannot say


@cache
def _streams(device: torch.device) -> list[torch.cuda.Stream]:
    return [torch.cuda.Stream(device) for _ in range(STREAMS)]
