"""Codebooks of visual words: representative descriptors, learned from a sample."""

import numpy as np
from sklearn.cluster import MiniBatchKMeans

from bagnet_lightning.errors import UserError
from bagnet_lightning.local_features.bag import Bags

BLOCK = 8  # neighbouring images that are sampled together: a network describes several as fast as one
BLOCKS = 1000  # of a sample, at most
ROWS = 8192  # descriptors compared with all words at a time
MAJORITY_ROUNDS = 10  # the mean distance is then within 0.3 % of its limit


def sample(bags: Bags, count: int, seed: int) -> np.ndarray:
    """Draws about `count` descriptors, fewer if images have few.

    At most BLOCKS blocks of neighbouring images from all over `bags` give the same number each, or all that they have.
    """
    draw = np.random.default_rng(seed)
    starts = np.arange(0, len(bags), BLOCK)
    starts = np.sort(draw.permutation(starts)[:BLOCKS])
    quota = -(-count // len(starts))
    kept, filled = np.empty((0, 0)), 0
    for start in starts:
        descriptors = bags.read(int(start), min(int(start) + BLOCK, len(bags))).descriptors
        chosen = descriptors[np.sort(draw.permutation(len(descriptors))[:quota])]
        if not filled:  # one array for all, as a network's are gigabytes; rows that are not written take no memory
            kept = np.empty((quota * len(starts), chosen.shape[1]), chosen.dtype)
        kept[filled : filled + len(chosen)] = chosen
        filled += len(chosen)
    return kept[:filled]


def learn_words(descriptors: np.ndarray, size: int, binary: bool, seed: int) -> np.ndarray:
    """Learns a codebook of `size` words, (size, D): float32 means, or uint8 codes if the descriptors are `binary`.

    Raises UserError if there are fewer descriptors than words.
    """
    if len(descriptors) < size:
        raise UserError(
            f"encoding.codebook.size={size}: a word needs a local feature of the training images, and the sample has "
            f"{len(descriptors)}; ask for fewer words"
        )
    return k_majority(descriptors, size, seed) if binary else k_means(descriptors, size, seed)


def nearest_word(descriptors: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Finds the index of each descriptor's nearest word, (M,): by Hamming distance for uint8 words, else Euclidean."""
    if words.dtype == np.uint8:
        descriptors, words = _signs(descriptors), _signs(words)
    words = words.astype(np.float32, copy=False)
    half_norms = np.einsum("wd,wd->w", words, words) / 2
    nearest = np.empty(len(descriptors), np.int64)
    for start in range(0, len(descriptors), ROWS):
        rows = slice(start, start + ROWS)
        nearest[rows] = (descriptors[rows].astype(np.float32, copy=False) @ words.T - half_norms).argmax(1)
    return nearest


def k_means(descriptors: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Learns means, (size, D) float32, by scikit-learn's mini-batch k-means (Sculley 2010)."""
    learner = MiniBatchKMeans(
        size,
        init_size=3 * size,  # by default 3 * batch_size, which takes minutes for the same error
        batch_size=4096,
        n_init=1,
        max_iter=50,
        random_state=seed,
    )
    return learner.fit(descriptors.astype(np.float32, copy=False)).cluster_centers_.astype(np.float32)


def k_majority(descriptors: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Learns binary words, (size, bytes) uint8, by Lloyd's algorithm in Hamming space (Grana et al. 2013).

    Each bit of a word is the majority of its descriptors' bits; a tie gives a 1. A word that is nearest to none is
    replaced by a random descriptor.
    """
    draw = np.random.default_rng(seed)
    words = descriptors[draw.choice(len(descriptors), size, replace=False)]
    signs = _signs(descriptors)
    assigned = None
    for _ in range(MAJORITY_ROUNDS):
        before, assigned = assigned, nearest_word(descriptors, words)
        if before is not None and (assigned == before).all():
            break
        order = np.argsort(assigned, kind="stable")
        counts = np.bincount(assigned, minlength=size)
        present = np.flatnonzero(counts)
        votes = np.add.reduceat(signs[order], np.cumsum(counts)[present] - counts[present], axis=0)
        words = words.copy()
        words[present] = np.packbits(votes >= 0, axis=1)
        empty = np.flatnonzero(counts == 0)
        words[empty] = descriptors[draw.integers(len(descriptors), size=len(empty))]
    return words


def _signs(codes: np.ndarray) -> np.ndarray:
    """Unpacks (M, bytes) to (M, bits) float32, -1 or 1: their products are bits minus twice the Hamming distance."""
    return np.unpackbits(codes, axis=1).astype(np.float32) * 2 - 1
