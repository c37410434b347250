"""Explanations of pictures by one network, or by several side by side: the output of explain."""

from dataclasses import replace
from importlib.util import find_spec

from bagnet_lightning.data.batches import Images
from bagnet_lightning.errors import UserError
from bagnet_lightning.explanation.arrays import Arrays
from bagnet_lightning.explanation.attribution import NO_STAGE, methods_for
from bagnet_lightning.explanation.drawing import draw
from bagnet_lightning.explanation.inputs import Picture
from bagnet_lightning.explanation.maps import explain, load_model
from bagnet_lightning.explanation.page import Page
from bagnet_lightning.inference.logits import predict, takes_any_size
from bagnet_lightning.names import find_class, told_apart


class Networks:
    """Explains pictures by the networks of `paths`.

    requested: a class to show besides the predicted and the true ones. exact: without captum's methods.
    Raises UserError if a file is no checkpoint, the networks have different classes or were trained on images of
    different sizes, or no class is the requested one.
    """

    def __init__(self, paths: list[str], requested: str | None, exact: bool):
        self.models = [load_model(path, exact_only=exact) for path in paths]
        trained = self.models[0].trained
        if any(model.trained.classes != trained.classes for model in self.models):
            raise UserError(
                f"{' and '.join(paths)} do not know the same classes in the same order; explain them one by one"
            )
        if len(sizes := {model.trained.image_size: None for model in self.models}) > 1:
            sizes = " and ".join(f"{size} px" for size in sizes)
            raise UserError(f"{' and '.join(paths)} were trained on images of {sizes}; explain them one by one")
        names = told_apart([model.name for model in self.models], paths)
        self.models = [replace(model, name=name) for model, name in zip(self.models, names, strict=True)]
        self.config, self.image_size = trained.config, trained.image_size
        self.classes, self.class_names = trained.classes, trained.class_names
        self.requested: int | None = None
        if requested is not None:
            self.requested = find_class(requested, self.classes, self.class_names, f"class={requested}")
        self.approximate, self.notes = not exact, []
        if self.approximate and find_spec("captum") is None and all(model.field for model in self.models):
            self.approximate = False
            self.notes.append("exact evidence alone: for others beside it, pip install 'bagnet-lightning[explain]'")
        elif self.approximate:
            for model in self.models:
                if "grad_cam" not in methods_for(model.network, self.image_size, self.image_size):
                    self.notes.append(f"{model.name} has no Grad-CAM: {NO_STAGE}")
        self.page = Page(self.models, self.requested)
        self.arrays = [Arrays(self.classes, self.class_names) for _ in self.models]

    def check_size(self, height: int, width: int) -> None:
        """Raises UserError if an image of this size cannot be explained."""
        for model in self.models:
            if model.field:
                model.network.check_size(height, width)
            elif (height, width) != (self.image_size, self.image_size) and not takes_any_size(model.trained):
                raise UserError(f"{model.path} takes images of {self.image_size} px alone, not {width} x {height}")

    def mistaken(self, images: Images) -> list[int]:
        """Returns the positions of the images that the first network takes for another class."""
        logits = predict(self.models[0].trained, images.split.images, images.chosen)
        return (logits.argmax(1) != images.labels).nonzero()[:, 0].tolist()

    def explain(self, picture: Picture) -> tuple[bytes, list[str]]:
        """Returns a PNG and lines for the terminal. The arrays are kept for `files`."""
        explanations = explain(self.models, picture, self.requested, self.approximate)
        self.page.add(picture, explanations)
        lines = []
        for model, explanation, kept in zip(self.models, explanations, self.arrays, strict=True):
            # Copies, since views would keep all classes' maps alive.
            arrays = {key: maps.numpy().copy() for key, maps in explanation.maps().items()}
            if explanation.patch_logits is not None:
                arrays["patch_logits"] = explanation.patch_logits.numpy()
            logits = explanation.logits.numpy()
            kept.keep(picture, explanation.predicted, explanation.shown, arrays, logits=logits)
            predicted = self.class_names[explanation.predicted]
            truth = "" if picture.label is None else f", true class {self.class_names[picture.label]}"
            exact = ""
            if model.field:
                patches = explanation.patch_logits[..., 0].numel()
                exact = f"; its logit is the mean of {patches} patches' (off by {explanation.largest_difference:.0e})"
            lines.append(f"{model.name} says {predicted}{truth}{exact}")
        return draw(picture, self.models, explanations), lines

    def files(self) -> dict[str, bytes]:
        """Returns the page, and each network's evidence.npz with these keys; images are numbered from 0.

        images (N,) names; classes, class_names (C,); logits (N, C) float32; predicted, true (N,), -1 where unknown.
        For image i of H x W px, with K shown classes: pixels_i (H, W, 3) uint8; shown_i (K,) class indices; evidence_i
        (K, H, W) float32, the logit of the patch centred on each pixel; contributions_i (K, H, W) float32, each pixel's
        share of the logit; patch_logits_i (h, w, C) float32, of the patches at the native stride, whose mean is the
        image's logits; grad_cam_i and integrated_gradients_i (K, H, W) float32. What was not computed is missing.
        """
        names = (
            ["evidence.npz"] if len(self.models) == 1 else [f"evidence_{i + 1}.npz" for i in range(len(self.models))]
        )
        arrays = {name: kept.npz() for name, kept in zip(names, self.arrays, strict=True)}
        return {**arrays, "index.html": self.page.html().encode()}
