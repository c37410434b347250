import pytest
import torch

from bagnet_lightning.training import muon
from bagnet_lightning.training.muon import Muon, orthogonal_filters, orthogonalized


@pytest.mark.parametrize(("amx", "atol"), [(False, 1e-3), (True, 1e-2)])  # in float32, in bfloat16
@pytest.mark.parametrize("shape", [(3, 20, 50), (1, 16, 16)])
def test_singular_values_become_about_one(shape, amx, atol, monkeypatch):
    monkeypatch.setattr(muon, "multiplies_bfloat16", lambda device: amx)
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalized(matrices))
    assert values.min() > 0.3
    assert values.max() < 1.25
    before, after = (torch.linalg.svd(m, full_matrices=False) for m in (matrices, orthogonalized(matrices)))
    polar = [svd.U @ svd.Vh for svd in (before, after)]
    torch.testing.assert_close(*polar, atol=atol, rtol=0)  # the same directions


def test_only_filters_are_orthogonalised_whatever_their_memory_format():
    filters = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    bias = torch.randn(8)
    steps = orthogonal_filters([filters, bias, filters.to(memory_format=torch.channels_last)], [True] * 3)
    assert steps[1] is bias
    torch.testing.assert_close(steps[0], steps[2])
    expected = orthogonalized(filters.flatten(1)[None])[0].view_as(filters)
    torch.testing.assert_close(steps[0], expected, atol=0.01, rtol=0)
    assert steps[2].is_contiguous(memory_format=torch.channels_last)


def test_matrices_move_as_1x1_filters_unless_they_are_not_hidden():
    generator = torch.Generator().manual_seed(0)
    start, gradient = torch.randn(2, 24, 12, generator=generator)
    matrix, head = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    filters = torch.nn.Parameter(start[..., None, None].clone())
    head.hidden = False
    for parameter in (matrix, filters, head):
        parameter.grad = gradient.view_as(parameter).clone()
    Muon([matrix, filters, head], lr=0.1, momentum=0.9, weight_decay=0.0).step()
    torch.testing.assert_close(matrix, filters[..., 0, 0])
    torch.testing.assert_close(head.data, start - 0.1 * 1.9 * gradient)
    values = torch.linalg.svdvals((start - matrix.data) / 0.1)
    assert values.max() < 1.25 * 2**0.5  # 24 / 12


def test_a_1x1_filter_moves_as_by_torchs_muon():
    torchs = getattr(torch.optim, "Muon", None) or pytest.skip("torch before 2.9")
    generator = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(24, 12, generator=generator), torch.randn(3, 24, 12, generator=generator)
    ours, theirs = torch.nn.Parameter(start[:, :, None, None].clone()), torch.nn.Parameter(start.clone())
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.5}
    optimizers = Muon([ours], **settings), torchs([theirs], **settings)
    for gradient in gradients:
        ours.grad, theirs.grad = gradient[:, :, None, None].clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours[:, :, 0, 0], theirs, atol=0.01, rtol=0)  # theirs is in bfloat16


def test_the_rest_moves_as_by_nesterov_sgd():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, generator=generator)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimizers = (
        Muon([ours], lr=0.1, momentum=0.9, weight_decay=0.0),
        torch.optim.SGD([theirs], lr=0.1, momentum=0.9, nesterov=True),
    )
    for gradient in torch.randn(3, 5, generator=generator):
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_goes_on_from_its_state_as_if_unbroken():
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(4, 6, 3, 1, 1, generator=generator)
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    unbroken = torch.nn.Parameter(torch.randn(6, 3, 1, 1, generator=generator))
    broken = torch.nn.Parameter(unbroken.detach().clone())
    optimizers = [Muon([unbroken], **settings), Muon([broken], **settings)]
    for step, gradient in enumerate(gradients):
        unbroken.grad, broken.grad = gradient.clone(), gradient.clone()
        if step == 2:
            state = optimizers[1].state_dict()
            optimizers[1] = Muon([broken], **settings)
            optimizers[1].load_state_dict(state)
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(unbroken, broken)
