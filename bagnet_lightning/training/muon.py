"""Muon: Nesterov SGD whose steps of convolution filters are orthogonalised (Jordan et al. 2024)."""

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients: small singular values grow fastest
ITERATIONS = 5


class Muon(Optimizer):
    """A filter (O, I, k, k) moves by `lr` times a matrix (O, I k k) whose singular values are all about 1.

    What is no filter (norms, biases, the classifier) moves as by Nesterov SGD of the same `lr`. weight_decay:
    decoupled, as a share of `lr`. torch.optim.Muon takes matrices only, each by itself; here filters of one shape are
    one batch.
    """

    def __init__(self, params: Iterable, lr: float, momentum: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                steps = orthogonal_filters(self._nesterov(parameters, group["momentum"]))
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, steps, alpha=-group["lr"])
        return loss

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
    places = defaultdict(list)
    for place, step in enumerate(steps):
        if step.ndim == 4:
            places[step.shape].append(place)
    steps = [*steps]
    for (outputs, inputs, height, width), same in places.items():
        # In the order (O, k, k, I), which is that of channels_last memory: the order of columns is of no account.
        matrices = torch.stack([steps[place].permute(0, 2, 3, 1).flatten(1) for place in same])
        matrices = orthogonalized(matrices) * max(1.0, outputs / matrices.shape[2]) ** 0.5
        for place, matrix in zip(same, matrices, strict=True):
            steps[place] = matrix.view(outputs, height, width, inputs).permute(0, 3, 1, 2)
    return steps


def orthogonalized(matrices: Tensor) -> Tensor:
    """(N, m, n) with singular values moved to between 0.6 and 1.2 by Newton-Schulz iterations; bfloat16 on a GPU."""
    a, b, c = QUINTIC
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)
