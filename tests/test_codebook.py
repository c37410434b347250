import itertools

import numpy as np
import pytest
from local_bags import InMemory, bag_of, random_bag

from bagnet_lightning.errors import UserError
from bagnet_lightning.local_features import codebook
from bagnet_lightning.local_features.codebook import k_majority, k_means, learn_words, nearest_word, sample


def hamming(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(M, W) numbers of bits that differ, one by one."""
    return np.array(
        [[sum(bin(x ^ y).count("1") for x, y in zip(p, q, strict=True)) for q in b.tolist()] for p in a.tolist()]
    )


def test_the_nearest_word_is_the_nearest_of_all():
    draw = np.random.default_rng(0)
    codes, words = draw.integers(0, 256, (40, 4), np.uint8), draw.integers(0, 256, (9, 4), np.uint8)
    distances = hamming(codes, words)
    assert (distances[np.arange(40), nearest_word(codes, words)] == distances.min(1)).all()
    points, means = draw.normal(size=(40, 5)), draw.normal(size=(9, 5)).astype(np.float32)
    distances = np.linalg.norm(points[:, None] - means, axis=2)
    np.testing.assert_array_equal(nearest_word(points, means), distances.argmin(1))


def planted(seed: int, words: int, each: int, flips: int) -> tuple[np.ndarray, np.ndarray]:
    """Random 128-bit codes and `each` copies of every one with `flips` bits changed."""
    draw = np.random.default_rng(seed)
    codes = draw.integers(0, 256, (words, 16), np.uint8)
    bits = np.unpackbits(np.repeat(codes, each, axis=0), axis=1)
    for row in bits:
        row[draw.choice(128, flips, replace=False)] ^= 1
    return codes, draw.permutation(np.packbits(bits, axis=1))


def test_a_sample_of_some_blocks_is_from_all_over(monkeypatch):
    monkeypatch.setattr(codebook, "BLOCKS", 4)
    places = np.arange(200.0, dtype=np.float32)[:, None]
    sampled = sample(InMemory(bag_of(places, [1] * 200), binary=False), 200, seed=0)
    assert len(sampled) == 4 * codebook.BLOCK
    assert sampled.max() > 100


def test_k_majority_finds_planted_codes():
    codes, noisy = planted(seed=1, words=5, each=41, flips=15)
    found = min(
        (k_majority(noisy, 5, seed) for seed in range(10)), key=lambda words: hamming(noisy, words).min(1).sum()
    )
    assert sorted(found.tolist()) == sorted(codes.tolist())  # every bit of every code


def test_k_majority_is_as_good_as_the_best_of_all_partitions():
    """Nine codes in two groups: by brute force over all 256 partitions, each with its majorities."""
    _, codes = planted(seed=2, words=2, each=4, flips=30)
    bits = np.unpackbits(codes, axis=1)

    def cost(group) -> int:
        members = bits[list(group)]
        ones = members.sum(0)
        return int(np.minimum(ones, len(members) - ones).sum())

    everyone = set(range(len(codes)))
    groups = (set(group) for size in range(1, 8) for group in itertools.combinations(everyone, size))
    best = min(cost(group) + cost(everyone - group) for group in groups)
    found = min(int(hamming(codes, k_majority(codes, 2, seed)).min(1).sum()) for seed in range(10))
    assert found == best


def test_no_step_of_k_majority_goes_up_and_no_word_is_lost(monkeypatch):
    _, noisy = planted(seed=3, words=4, each=20, flips=40)
    totals = []
    for rounds in range(8):
        monkeypatch.setattr(codebook, "MAJORITY_ROUNDS", rounds)
        totals.append(int(hamming(noisy, k_majority(noisy, 12, seed=0)).min(1).sum()))
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] < totals[1] < totals[0]
    monkeypatch.setattr(codebook, "MAJORITY_ROUNDS", 10)
    draw = np.random.default_rng(0)
    codes = np.concatenate([draw.integers(0, 256, (80, 4), np.uint8), np.zeros((20, 4), np.uint8)])
    for seed in range(5):  # the first words of all are drawn from many that are the same
        assert len(set(nearest_word(codes, k_majority(codes, 12, seed)))) == 12
    same = np.repeat(noisy[:3], 10, axis=0)  # three codes cannot keep five words busy
    assert k_majority(same, 5, seed=0).shape == (5, 16)


def test_words_are_the_same_for_a_seed_and_differ_between_seeds():
    points = np.random.default_rng(0).normal(size=(3000, 6)).astype(np.float32)
    np.testing.assert_array_equal(k_means(points, 20, 0), k_means(points, 20, 0))
    assert not np.array_equal(k_means(points, 20, 0), k_means(points, 20, 1))
    _, noisy = planted(seed=4, words=4, each=20, flips=40)
    np.testing.assert_array_equal(k_majority(noisy, 6, 0), k_majority(noisy, 6, 0))


def test_k_means_finds_planted_means():
    draw = np.random.default_rng(5)
    means = draw.normal(0, 10, (4, 6))
    points = np.repeat(means, 500, axis=0) + draw.normal(0, 0.1, (2000, 6))
    points = draw.permutation(points).astype(np.float32)
    errors = [np.linalg.norm(k_means(points, 4, seed)[:, None] - means, axis=2).min(0).max() for seed in range(5)]
    assert min(errors) < 0.1


def test_words_need_as_many_features_and_are_of_their_kind():
    assert learn_words(random_bag(0, [30], binary=True).descriptors, 4, binary=True, seed=0).dtype == np.uint8
    assert learn_words(random_bag(0, [30]).descriptors, 4, binary=False, seed=0).dtype == np.float32
    with pytest.raises(UserError, match=r"^encoding\.codebook\.size=31: .* has 30"):
        learn_words(random_bag(0, [30]).descriptors, 31, binary=False, seed=0)


def test_a_sample_is_drawn_from_all_images_and_is_the_same_for_a_seed():
    counts = [5] * 80 + [0] * 8 + [5] * 72
    image = np.repeat(np.arange(160), counts)[:, None].astype(np.float32)
    bags = InMemory(bag_of(image, counts), binary=False)
    drawn = sample(bags, 200, seed=0)
    assert 180 <= len(drawn) <= 220
    assert len(np.unique(drawn // 8)) == 19  # every block of eight neighbours that has any
    np.testing.assert_array_equal(drawn, sample(bags, 200, seed=0))
    assert not np.array_equal(drawn, sample(bags, 200, seed=1))
    everything = sample(bags, 10_000, seed=0)
    assert sorted(everything[:, 0]) == sorted(image[:, 0])
