import numpy as np
import pytest
from local_bags import InMemory, bag_of, random_bag
from scipy.stats import norm

from bagnet_lightning.errors import UserError
from bagnet_lightning.local_features.encoding import BagOfWords, FisherVectors

COUNTS = [5, 0, 12, 1, 30]


def bag_of_words(words: np.ndarray, power=1.0, norm=None) -> BagOfWords:
    encoding = BagOfWords({"size": len(words), "sample": 100}, power, norm)
    encoding.arrays = {"words": words}
    return encoding


def fisher(power=1.0, norm=None) -> FisherVectors:
    encoding = FisherVectors(gaussians=3, dimensions=4, sample=300, power=power, norm=norm)
    encoding.learn(InMemory(random_bag(7, [10] * 30), binary=False), seed=0)
    return encoding


def test_a_bag_of_words_counts_the_nearest_words():
    words = np.array([[0.0], [1.0], [5.0]], np.float32)
    bag = bag_of(np.array([[0.2], [-3], [0.9], [4], [4]], np.float32), [3, 0, 2])
    np.testing.assert_array_equal(bag_of_words(words)(bag), [[2, 1, 0], [0, 0, 0], [0, 0, 2]])


def test_binary_words_are_nearest_by_hamming_distance():
    words = np.array([[0b00000000], [0b11111111]], np.uint8)
    bag = bag_of(np.array([[0b10000001], [0b01111100]], np.uint8), [2])
    np.testing.assert_array_equal(bag_of_words(words)(bag), [[1, 1]])


def test_power_and_norm():
    words = np.array([[0.0], [1.0]], np.float32)
    bag = bag_of(np.array([[0.0]] * 16 + [[1.0]] * 9, np.float32), [25, 0])
    np.testing.assert_allclose(bag_of_words(words, 0.5, "l2")(bag), [[4 / 5, 3 / 5], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(bag_of_words(words, 1.0, "l1")(bag), [[16 / 25, 9 / 25], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(bag_of_words(words, 0.5, None)(bag), [[4, 3], [0, 0]], rtol=1e-6)
    signed = fisher(0.5, None).normalized(np.array([[-4.0, 9.0, 0.0]], np.float32))
    np.testing.assert_allclose(signed, [[-2, 3, 0]])


@pytest.mark.parametrize("encoding", [bag_of_words(random_bag(1, [6]).descriptors), fisher()])
def test_the_parts_of_local_features_sum_to_the_vector_of_their_image(encoding):
    bag = random_bag(2, COUNTS)
    parts, sums = encoding.parts(bag), encoding.sums(bag)
    assert parts.shape == (sum(COUNTS), sums.shape[1])
    expected = [parts[start:stop].sum(0) for start, stop in zip(bag.offsets, bag.offsets[1:], strict=False)]
    np.testing.assert_allclose(sums, expected, atol=1e-4)
    assert not sums[1].any()


def test_fisher_vectors_are_the_gradient_of_the_likelihood():
    """By finite differences of the mean log-likelihood, scaled by the Fisher information's diagonal approximation."""
    encoding, bag = fisher(), random_bag(3, [20])
    arrays = {name: array.astype(np.float64) for name, array in encoding.arrays.items()}
    x = (bag.descriptors - arrays["mean"]) @ arrays["components"].T
    weights = arrays["weights"]

    def likelihood(means, deviations) -> float:
        return np.log((weights * norm.pdf(x[:, None], means, deviations).prod(2)).sum(1)).mean()

    def gradient(name) -> np.ndarray:
        slopes = np.zeros_like(arrays[name])
        for place in np.ndindex(slopes.shape):
            step = np.zeros_like(slopes)
            step[place] = 1e-5
            up, down = ({**arrays, name: arrays[name] + sign * step} for sign in (1, -1))
            rise = likelihood(up["means"], up["deviations"]) - likelihood(down["means"], down["deviations"])
            slopes[place] = rise / 2e-5
        return slopes

    scale = arrays["deviations"] / np.sqrt(weights)[:, None]
    expected = np.concatenate([(gradient("means") * scale).ravel(), (gradient("deviations") * scale).ravel() / 2**0.5])
    np.testing.assert_allclose(encoding.sums(bag)[0], expected, atol=2e-4)


def test_fisher_vectors_of_the_data_that_the_mixture_fits_are_near_zero():
    bags = InMemory(random_bag(7, [300]), binary=False)
    encoding = FisherVectors(gaussians=3, dimensions=4, sample=300, power=1.0, norm=None)
    encoding.learn(bags, seed=0)
    fitting = np.abs(encoding(bags.whole)).max()
    moved = bag_of(bags.whole.descriptors + 1, [300])
    assert fitting < 0.02 < 10 * fitting < np.abs(encoding(moved)).max()


def test_an_encoding_is_the_same_for_the_same_seed():
    bags = InMemory(random_bag(4, [40] * 20), binary=False)
    for make in (
        lambda: BagOfWords({"size": 16, "sample": 500}, 0.5, "l2"),
        lambda: FisherVectors(4, 3, sample=500, power=0.5, norm="l2"),
    ):
        one, two = make(), make()
        one.learn(bags, seed=3)
        two.learn(bags, seed=3)
        np.testing.assert_array_equal(one(bags.whole), two(bags.whole))


def test_what_fisher_vectors_cannot_be_made_of():
    with pytest.raises(UserError, match=r"encoding\.dimensions=9"):
        FisherVectors(2, 9, 100, 0.5, "l2").learn(InMemory(random_bag(0, [20]), binary=False), seed=0)
