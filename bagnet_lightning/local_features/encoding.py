"""From the local features of an image to one vector of a fixed length.

Every encoding is a sum of one vector a local feature, then a power of each element, then a norm: so what a linear
classifier makes of it is divided exactly among the local features (model.py).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from bagnet_lightning.errors import UserError
from bagnet_lightning.local_features.bag import Bag, Bags
from bagnet_lightning.local_features.codebook import learn_words, nearest_word, sample

NORMS = (None, "l1", "l2")


class Encoding(ABC):
    """power: sign(x) |x|^power of every element; norm: "l1", "l2" or None, of the whole vector after that."""

    arrays: Mapping[str, np.ndarray]  # what was learned

    def __init__(self, power: float, norm: str | None):
        self.power, self.norm = power, norm
        self.arrays = {}

    @abstractmethod
    def learn(self, bags: Bags, seed: int) -> None:
        """Learns what there is to learn from the local features of the training images."""

    @abstractmethod
    def parts(self, bag: Bag) -> np.ndarray:
        """(M, W) float32: what each local feature adds to the sum of its image."""

    def sums(self, bag: Bag) -> np.ndarray:
        """(n, W) float32; zeros for an image without local features."""
        parts = self.parts(bag)
        sums = np.zeros((len(bag), parts.shape[1]), np.float32)
        np.add.at(sums, bag.images, parts)
        return sums

    def normalized(self, sums: np.ndarray) -> np.ndarray:
        """(n, W) float32: the power and the norm of (n, W) sums."""
        vectors = sums if self.power == 1 else np.sign(sums) * np.abs(sums) ** self.power
        if self.norm:
            order = {"l1": 1, "l2": 2}[self.norm]
            lengths = np.linalg.norm(vectors, order, axis=1, keepdims=True)
            vectors = vectors / np.where(lengths > 0, lengths, 1)
        return vectors.astype(np.float32)

    def __call__(self, bag: Bag) -> np.ndarray:
        """(n, W) float32: the vectors of the images."""
        return self.normalized(self.sums(bag))


class Mean(Encoding):
    """The mean of an image's descriptors."""

    def learn(self, bags: Bags, seed: int) -> None:
        pass

    def parts(self, bag: Bag) -> np.ndarray:
        return bag.descriptors.astype(np.float32) / np.diff(bag.offsets)[bag.images, None].astype(np.float32)


class Decisions(Encoding):
    """Histogram of the classes that a network sees in an image's patches: the mean of their probabilities.

    Hou et al., Patch-based CNN for whole slide tissue image classification, CVPR 2016, section 4, who sum the
    probabilities instead of counting the most probable class.
    """

    def learn(self, bags: Bags, seed: int) -> None:
        if not bags.logits:
            raise UserError(
                "encoding=decisions is of a network's decisions: add features=bagnet features.output=logits"
            )

    def parts(self, bag: Bag) -> np.ndarray:
        probabilities = np.exp(bag.descriptors - bag.descriptors.max(1, keepdims=True))
        probabilities /= probabilities.sum(1, keepdims=True)
        return probabilities / np.diff(bag.offsets)[bag.images, None].astype(np.float32)


class BagOfWords(Encoding):
    """How often each visual word is the nearest (Csurka et al. 2004).

    codebook: size (words) and sample (local features that they are learned from). With power 1/2 and norm l2 the
    product of two vectors is Hellinger's kernel of the histograms.
    """

    def __init__(self, codebook: dict, power: float, norm: str | None):
        super().__init__(power, norm)
        self.codebook = codebook

    def learn(self, bags: Bags, seed: int) -> None:
        descriptors = sample(bags, self.codebook["sample"], seed)
        words = learn_words(descriptors, self.codebook["size"], bags.binary, seed)
        self.arrays = {"words": words}

    def words(self, bag: Bag) -> np.ndarray:
        """(M,) the word of each local feature."""
        return nearest_word(bag.descriptors, self.arrays["words"])

    def parts(self, bag: Bag) -> np.ndarray:
        parts = np.zeros((len(bag.descriptors), len(self.arrays["words"])), np.float32)
        parts[np.arange(len(parts)), self.words(bag)] = 1
        return parts

    def sums(self, bag: Bag) -> np.ndarray:
        size = len(self.arrays["words"])
        places = bag.images * size + self.words(bag)
        return np.bincount(places, minlength=len(bag) * size).reshape(len(bag), size).astype(np.float32)
