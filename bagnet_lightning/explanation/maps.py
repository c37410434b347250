"""Networks and one image -> logits, exact evidence, and captum's attributions for the classes that matter there."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bagnet_lightning.checkpoint import Trained, load_trained
from bagnet_lightning.data.augment import normalize
from bagnet_lightning.errors import UserError
from bagnet_lightning.evidence import dense_evidence, patch_evidence
from bagnet_lightning.explanation.attribution import grad_cam, integrated_gradients
from bagnet_lightning.explanation.inputs import Picture
from bagnet_lightning.inference import best_device, predict
from bagnet_lightning.models.bagnet import BagNet

APPROXIMATIONS = {"Grad-CAM": grad_cam, "integrated gradients": integrated_gradients}
EXACT = "exact evidence"


@dataclass(frozen=True)
class Model:
    """A checkpoint to explain."""

    path: Path
    trained: Trained
    field: int | None  # px; None: it is no BagNet

    @property
    def name(self) -> str:
        return self.trained.name

    @property
    def network(self) -> nn.Module:
        return self.trained.network

    @property
    def grey(self) -> tuple[int, int, int]:
        """What surrounds the image, zeros to the network, as RGB of 0..255: the mean colour, or black."""
        return tuple(round(255 * value) for value in self.trained.mean)


@dataclass(frozen=True)
class Explanation:
    """One image as one network sees it. Everything is float32 on the CPU."""

    logits: Tensor  # (classes,)
    shown: list[int]  # classes that pictures show: predicted (by any of the networks), true, asked
    dense: Tensor | None  # (H, W, classes): logits of the patch centred on each pixel; None: no BagNet
    patch_logits: Tensor | None  # (h, w, classes): of the patches at the native stride, whose mean are the logits
    approximations: dict[str, Tensor]  # method -> (shown, H, W)

    @property
    def predicted(self) -> int:
        return self.logits.argmax().item()

    @property
    def additivity_error(self) -> float:
        """Largest difference, over the classes, of a logit and the mean of its patches' logits."""
        return (self.patch_logits.mean((0, 1)) - self.logits).abs().max().item()

    def maps(self) -> dict[str, Tensor]:
        """Every method's (shown, H, W), the exact one first."""
        exact = {} if self.dense is None else {EXACT: self.dense[..., self.shown].permute(2, 0, 1)}
        return exact | self.approximations


def load_model(path: str | Path, exact_only: bool) -> Model:
    """Raises UserError if the file is no checkpoint, or if exact evidence is asked of what is no BagNet."""
    trained = load_trained(path)
    is_bagnet = isinstance(trained.network, BagNet)
    if exact_only and not is_bagnet:
        raise UserError(f"exact=true: {path} is a {trained.name}, and only BagNets have exact evidence; leave it out")
    trained.network.to(best_device())
    return Model(Path(path), trained, trained.network.receptive_field if is_bagnet else None)


def explain(models: list[Model], picture: Picture, asked: int | None, approximate: bool) -> list[Explanation]:
    """Each model's explanation of the picture, for the same shown classes.

    asked: a class to show besides the predicted and the true ones. approximate: whether to run captum's methods.
    Raises UserError if the picture is smaller than a model's receptive field.
    """
    height, width, _ = picture.pixels.shape
    for model in models:
        if model.field and min(height, width) < model.field:
            raise UserError(
                f"{picture.name} is {width} x {height} px, smaller than the {model.field} px patches of "
                f"{model.name}; enlarge it with size={model.field} or more"
            )
    pixels = torch.tensor(picture.pixels)[None]
    logits = [predict(model.trained, pixels)[0] for model in models]
    inputs = [normalize(pixels.to(best_device()), model.trained.mean, model.trained.std) for model in models]
    wanted = [*(values.argmax().item() for values in logits), picture.label, asked]
    shown = list(dict.fromkeys(index for index in wanted if index is not None))

    explanations = []
    for model, image, values in zip(models, inputs, logits, strict=True):
        dense = dense_evidence(model.network, image)[0].cpu() if model.field else None
        patches = patch_evidence(model.network, image)[0].cpu() if model.field else None
        repeated, classes = image.expand(len(shown), -1, -1, -1), torch.tensor(shown, device=image.device)
        methods = APPROXIMATIONS if approximate else {}
        maps = {name: method(model.network, repeated, classes).cpu() for name, method in methods.items()}
        explanations.append(Explanation(values, shown, dense, patches, maps))
    return explanations


def strongest(evidence: Tensor, field: int, count: int, largest: bool = True) -> list[tuple[int, int, float]]:
    """(row, column, score) of up to `count` patches with the largest, or smallest, scores, best first.

    evidence: (H, W), of the patches centred on the pixels; those that reach beyond the image are passed over.
    Neighbours nearly repeat each other: of two whose centres are closer than half the field both in rows and in
    columns, only the stronger one is taken.
    """
    reach = (field - 1) // 2
    inside = tuple(slice(reach, reach + side - field + 1) for side in evidence.shape)
    left = torch.full_like(evidence, -torch.inf)
    left[inside] = evidence[inside] if largest else -evidence[inside]
    found = []
    while len(found) < count and left.max() > -torch.inf:
        row, column = divmod(left.argmax().item(), left.shape[1])
        found.append((row, column, evidence[row, column].item()))
        left[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1] = -torch.inf
    return found
