import math

import numpy as np
import pytest
import torch
from sklearn.kernel_approximation import AdditiveChi2Sampler

from bagnet_lightning.local_features.kernel_map import KERNELS, KernelMap


def share(kernel, x, y):
    """What a pair of elements adds to the kernel, by its definition."""
    if kernel == "chi2":
        return 2 * x * y / (x + y)
    if kernel == "intersection":
        return np.minimum(x, y)
    return x / 2 * np.log2((x + y) / x) + y / 2 * np.log2((x + y) / y)


# The largest error, in units of sqrt(x y), where neither is more than 100 times the other: of the sum for the integral.
KNOWN_ERRORS = {
    ("chi2", 1): 0.138,
    ("chi2", 3): 0.024,
    ("intersection", 1): 0.324,
    ("intersection", 3): 0.113,
    ("jensen_shannon", 1): 0.088,
    ("jensen_shannon", 3): 0.008,
}


@pytest.mark.parametrize(("kernel", "order"), KNOWN_ERRORS)
def test_products_are_the_kernel_within_the_known_error(kernel, order):
    x, y = np.meshgrid(np.geomspace(1e-4, 1e-2, 60), np.geomspace(1e-4, 1e-2, 60))
    x, y = x.reshape(-1, 1), y.reshape(-1, 1)
    mapped = [KernelMap(kernel, order)(torch.from_numpy(values)).numpy() for values in (x, y)]
    error = np.abs((mapped[0] * mapped[1]).sum(1) - share(kernel, x, y)[:, 0]) / np.sqrt(x * y)[:, 0]
    assert 0.5 * KNOWN_ERRORS[kernel, order] < error.max() < KNOWN_ERRORS[kernel, order]


@pytest.mark.parametrize("kernel", ["chi2", "intersection", "jensen_shannon"])
def test_a_kernel_of_histograms_is_the_product_of_their_maps(kernel):
    draw = np.random.default_rng(0)
    histograms = draw.dirichlet(np.full(50, 0.5), size=20)
    histograms[histograms < 0.005] = 0  # as most words are in an image
    mapped = KernelMap(kernel, 5)(torch.from_numpy(histograms)).numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        exact = np.nansum(share(kernel, histograms[:, None], histograms), axis=2)
    np.testing.assert_allclose(mapped @ mapped.T, exact, atol=0.08 if kernel == "intersection" else 0.01)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_chi2_is_scikit_learns(steps):
    histograms = np.random.default_rng(1).dirichlet(np.ones(30), size=8)
    histograms[0, :5] = 0
    interval = 2 * math.pi / KERNELS["chi2"].period(steps)
    theirs = AdditiveChi2Sampler(sample_steps=steps + 1, sample_interval=interval).fit_transform(histograms)
    ours = KernelMap("chi2", steps)(torch.from_numpy(histograms)).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_nothing_is_mapped_to_nothing_and_scale_to_scale():
    histogram = torch.tensor([[0.0, 0.2, 0.8]])
    mapped = KernelMap("chi2", 2)(histogram).view(5, 3)
    assert mapped[:, 0].tolist() == [0] * 5
    assert mapped.isfinite().all()
    scaled = KernelMap("chi2", 2)(4 * histogram)
    assert scaled.square().sum().item() == pytest.approx(4 * mapped.square().sum().item())  # homogeneous of degree 1
    assert math.isclose(mapped.square().sum().item(), 1, abs_tol=0.05)
