"""Explains an image by networks: logits, exact evidence, and captum's attributions for the classes to show."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bagnet_lightning.checkpoint import Trained, load_trained
from bagnet_lightning.data.augment import normalize
from bagnet_lightning.errors import UserError
from bagnet_lightning.evidence import dense_evidence, patch_corners, patch_evidence, pixel_contributions
from bagnet_lightning.explanation.attribution import methods_for
from bagnet_lightning.explanation.inputs import Picture
from bagnet_lightning.inference.logits import best_device, predict
from bagnet_lightning.models.bagnet import BagNet


@dataclass(frozen=True)
class Model:
    """A checkpoint to explain."""

    path: Path
    trained: Trained
    name: str  # "BagNet-17"
    field: int | None  # receptive field, px; None: not a BagNet

    @property
    def network(self) -> nn.Module:
        return self.trained.network

    @property
    def grey(self) -> tuple[int, int, int]:
        """The colour around the image, zeros to the network, as RGB of 0..255: the mean colour, or black."""
        return tuple(round(255 * value) for value in self.trained.mean)


@dataclass(frozen=True)
class Explanation:
    """One network's explanation of one image. All tensors are float32 on the CPU."""

    logits: Tensor  # (classes,)
    shown: list[int]  # classes that pictures show: predicted (by any of the networks), true, requested
    dense: Tensor | None  # (H, W, classes): logits of the patch centred on each pixel; None: not a BagNet
    contributed: Tensor | None  # (H, W, shown): each pixel's share of the logits
    patch_logits: Tensor | None  # (h, w, classes): of the patches at the native stride; their mean is the logits
    approximations: dict[str, Tensor]  # key in names.MAPS -> (shown, H, W)

    @property
    def predicted(self) -> int:
        return self.logits.argmax().item()

    @property
    def largest_difference(self) -> float:
        """Largest difference, over the classes, of a logit and the mean of its patches' logits."""
        return (self.patch_logits.mean((0, 1)) - self.logits).abs().max().item()

    def maps(self) -> dict[str, Tensor]:
        """Returns the maps of every method, (shown, H, W), by its key in names.MAPS, the exact ones first."""
        if self.dense is None:
            return self.approximations
        exact = {"evidence": self.dense[..., self.shown], "contributions": self.contributed}
        return {method: values.permute(2, 0, 1) for method, values in exact.items()} | self.approximations


def load_model(path: str | Path, exact_only: bool) -> Model:
    """Loads a checkpoint. Raises UserError if the file is none, or if `exact_only` and its network is not a BagNet."""
    trained = load_trained(path)
    is_bagnet = isinstance(trained.network, BagNet)
    if exact_only and not is_bagnet:
        raise UserError(f"exact=true: {path} is a {trained.name}, and only BagNets have exact evidence; leave it out")
    trained.network.to(best_device())
    return Model(Path(path), trained, trained.name, trained.network.receptive_field if is_bagnet else None)


def explain(models: list[Model], picture: Picture, requested: int | None, approximate: bool) -> list[Explanation]:
    """Returns each model's explanation of the picture, for the same shown classes.

    requested: a class to show besides the predicted and the true ones. approximate: whether to run captum's methods.
    Raises UserError if the picture is smaller than a model's receptive field.
    """
    pixels = torch.tensor(picture.pixels)[None]
    try:
        logits = [predict(model.trained, pixels)[0] for model in models]
    except UserError as error:  # it is too small
        raise UserError(f"{picture.name}: {error} (size=PX enlarges it)") from error
    inputs = [normalize(pixels.to(best_device()), model.trained.mean, model.trained.std) for model in models]
    candidates = [*(values.argmax().item() for values in logits), picture.label, requested]
    shown = list(dict.fromkeys(index for index in candidates if index is not None))

    explanations = []
    for model, image, values in zip(models, inputs, logits, strict=True):
        exact = [None] * 3
        if model.field:
            dense, patches = dense_evidence(model.network, image), patch_evidence(model.network, image)
            contributed = pixel_contributions(model.network, image, shown)
            exact = [values[0].cpu() for values in (dense, contributed, patches)]
        repeated, classes = image.expand(len(shown), -1, -1, -1), torch.tensor(shown, device=image.device)
        methods = methods_for(model.network, *image.shape[2:]) if approximate else {}
        maps = {key: method(model.network, repeated, classes).cpu() for key, method in methods.items()}
        explanations.append(Explanation(values, shown, *exact, maps))
    return explanations


def strongest(
    model: Model, explanation: Explanation, index: int, count: int, largest: bool = True
) -> list[tuple[int, int, float]]:
    """Finds up to `count` patches with the largest, or smallest, logits for a class: (row, column, logit), best first.

    Only the network's own patches are considered; row and column are those of a patch's central pixel. Neighbouring
    patches are nearly the same: of two that are at most half the field apart, both in rows and in columns, only the
    better one is taken.
    """
    radius = (model.field - 1) // 2
    scores = explanation.patch_logits[..., index].flatten()
    centres = patch_corners(model.network, *explanation.dense.shape[:2]).flatten(0, 1) + radius
    found = []
    for patch in scores.argsort(descending=largest, stable=True).tolist():
        row, column = centres[patch].tolist()
        if all(max(abs(row - other[0]), abs(column - other[1])) > radius for other in found):
            found.append((row, column, scores[patch].item()))
        if len(found) == count:
            break
    return found
