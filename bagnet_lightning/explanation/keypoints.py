"""Explanations of pictures by a system of local features: pictures, lines, arrays and a page."""

from bagnet_lightning.data.batches import Images
from bagnet_lightning.errors import UserError
from bagnet_lightning.explanation.arrays import Arrays
from bagnet_lightning.explanation.inputs import Picture
from bagnet_lightning.explanation.keypoint_drawing import draw
from bagnet_lightning.explanation.keypoint_maps import explain
from bagnet_lightning.explanation.keypoint_page import KeypointPage
from bagnet_lightning.local_features.model import full_name, load_local_model
from bagnet_lightning.names import find_class


class Keypoints:
    """Explains pictures by the system in `path`, as Networks does by networks.

    requested: a class to show besides the predicted and the true one. Raises UserError if the file is not a system's
    model, its classifier is not additive, or it does not know that class.
    """

    def __init__(self, path: str, requested: str | None):
        self.model = load_local_model(path)
        if not self.model.classifier.additive:
            raise UserError(f"what {path} decides is no sum over an image's local features: there are no exact shares")
        self.config, self.classes, self.class_names = self.model.config, self.model.classes, self.model.class_names
        self.image_size = self.config["image_size"]
        self.requested: int | None = None
        if requested is not None:
            self.requested = find_class(requested, self.classes, self.class_names, f"class={requested}")
        self.notes: list[str] = []
        self.name = full_name(self.config, self.model.features)
        self.patches = self.model.features.explains == "patches"
        self.page = KeypointPage(self.name, self.patches, self.classes, self.class_names, self.requested)
        self.arrays = Arrays(self.classes, self.class_names)

    def check_size(self, height: int, width: int) -> None:
        """Raises UserError if an image of this size cannot be explained."""
        if self.patches:
            self.model.features.keypoints(height, width)

    def mistaken(self, images: Images) -> list[int]:
        raise UserError("mistakes=true is for networks; the images of a system of local features are images=FOLDER")

    def explain(self, picture: Picture) -> tuple[bytes, list[str]]:
        """Returns a PNG and lines for the terminal. The arrays are kept for `files`."""
        explanation = explain(self.model, picture, self.requested)
        self.page.add(picture, explanation)
        image_arrays = {"keypoints": explanation.keypoints, "shares": explanation.shares}
        if explanation.words is not None:
            image_arrays["words"] = explanation.words
        self.arrays.keep(picture, explanation.predicted, explanation.shown, image_arrays, scores=explanation.scores)
        predicted = self.class_names[explanation.predicted]
        truth = "" if picture.label is None else f", true class {self.class_names[picture.label]}"
        count, kind = len(explanation.keypoints), "patches" if self.patches else "keypoints"
        exact = (
            f"its score is its bias and the sum of {count} {kind}' shares (off by {explanation.largest_difference:.0e})"
        )
        exact = exact if count else f"it has no {kind}, and its score is its bias"
        png = draw(picture, explanation, self.name, self.class_names, self.patches)
        return png, [f"{self.name} says {predicted}{truth}; {exact}"]

    def files(self) -> dict[str, bytes]:
        """Returns the page, and evidence.npz with these keys; images are numbered from 0.

        images (N,) names; classes, class_names (C,); scores (N, C) and bias (C,) float32; predicted, true (N,), -1
        where unknown. For image i of H x W px with M keypoints: pixels_i (H, W, 3) uint8; shown_i (K,) class indices;
        keypoints_i (M, 4) float32, x, y, diameter (px) and angle (degrees); shares_i (M, C) float32, which with the
        bias sum to the scores; words_i (M,) visual words, if the system has some.
        """
        evidence = self.arrays.npz(bias=self.model.classifier.arrays["bias"])
        return {"evidence.npz": evidence, "index.html": self.page.html().encode()}
