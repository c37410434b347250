"""OpenCV's detectors as we call them, on cases whose answer is known."""

import cv2
import numpy as np
import pytest
from conftest import composed

from bagnet_lightning.data.textures import open_store
from bagnet_lightning.local_features.detectors import DenseSift, Detector, FastBrief, Orb, Sift
from bagnet_lightning.local_features.model import made

BLANK = np.full((64, 64, 3), 128, np.uint8)


def default(name: str, **changed) -> Detector:
    config = composed(f"features={name}", name="classical")
    return made({"features": {**config.features, **changed}}, "features")


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """An image with structure at many scales and one bright half: (96, 96, 3) uint8."""
    draw = np.random.default_rng(3)
    image = sum(
        cv2.resize(draw.normal(0, 30, (n, n)), (96, 96), interpolation=cv2.INTER_CUBIC) for n in (6, 12, 24, 48)
    )
    return cv2.cvtColor(np.clip(128 + image, 0, 255).astype(np.uint8), cv2.COLOR_GRAY2RGB)


def turned(image: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """The image turned about its middle, and the (2, 3) matrix that moves its points."""
    side = len(image)
    matrix = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), degrees, 1)
    return cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT), matrix


def inliers(detector, image, degrees, norm) -> tuple[int, float]:
    """Matches whose nearest neighbour is clearly the best, and the share of them that lie where the point went."""
    other, matrix = turned(image, degrees)
    (points, described), (there, described_there) = detector(image), detector(other)
    found = cv2.BFMatcher(norm).knnMatch(described, described_there, k=2)
    good = [best for best, second in found if best.distance < 0.8 * second.distance]  # Lowe 2004, section 7.1
    went = points[[m.queryIdx for m in good], :2] @ matrix[:, :2].T + matrix[:, 2]
    distance = np.linalg.norm(went - there[[m.trainIdx for m in good], :2], axis=1)
    return len(good), float((distance < 2.5).mean())


@pytest.mark.parametrize("degrees", [30, 90, 200])
def test_sift_matches_survive_a_rotation(photo, degrees):
    matches, right = inliers(default("sift"), photo, degrees, cv2.NORM_L2)
    assert matches >= 20
    assert right > 0.9


@pytest.mark.parametrize("degrees", [30, 90, 200])
def test_orb_matches_by_hamming_distance_survive_a_rotation(photo, degrees):
    matches, right = inliers(default("orb"), photo, degrees, cv2.NORM_HAMMING)
    assert matches >= 20
    assert right > 0.8


def test_upright_brief_matches_survive_a_shift_but_no_rotation(photo):
    matches, right = inliers(default("fast_brief"), photo, 0, cv2.NORM_HAMMING)
    assert right == 1
    assert inliers(default("fast_brief"), photo, 90, cv2.NORM_HAMMING)[0] < matches / 4


@pytest.mark.parametrize("upsample", [1, 2])
def test_fast_finds_the_corners_of_a_square(upsample):
    image = BLANK.copy()
    image[20:44, 16:48] = 255
    image = cv2.GaussianBlur(
        image, (3, 3), 0
    )  # as a lens draws it; of two equal responses side by side FAST keeps none
    corners = np.array([[16, 20], [47, 20], [16, 43], [47, 43]])
    points, _ = default("fast_brief", upsample=upsample)(image)
    distance = np.linalg.norm(points[:, None, :2] - corners, axis=2)
    assert len(points) >= 4
    assert distance.min(1).max() < 3  # nothing but corners
    assert distance.min(0).max() < 2  # all of them


@pytest.mark.parametrize("name", ["sift", "dense_sift", "orb", "fast_brief"])
def test_features_are_rows_of_bytes_with_a_place_in_the_image(photo, name):
    detector = default(name)
    keypoints, descriptors = detector(photo)
    assert descriptors.shape == (len(keypoints), detector.descriptor_bytes)
    assert (descriptors.dtype, keypoints.dtype, keypoints.shape[1]) == (np.uint8, np.float32, 4)
    assert keypoints[:, :2].min() >= -0.5
    assert keypoints[:, :2].max() <= 95.5
    assert keypoints[:, 2].min() > 1
    np.testing.assert_array_equal(detector(photo)[1], descriptors)


def test_images_of_64_px_have_keypoints_up_to_their_edges():
    images = open_store(0, 12, 6).splits["train"].images.numpy()
    for name in ("orb", "fast_brief", "sift"):
        bag, keypoints = default(name).describe(images)
        assert np.diff(bag.offsets).min() > 10
        middle = np.abs(keypoints[:, :2] - 31.5).max(1)
        assert middle.max() > 22, name  # in OpenCV's own settings ORB leaves out 31 px on every side


def test_an_enlarged_image_has_its_features_at_the_same_places(photo):
    """Of a blob in the middle the keypoint is there, and as large as it is, whatever `upsample`."""
    y, x = np.mgrid[:64, :64]
    blob = np.exp(-((x - 30) ** 2 + (y - 25) ** 2) / (2 * 4**2))
    image = np.repeat((60 + 150 * blob)[..., None], 3, axis=2).astype(np.uint8)
    for upsample in (1, 1.5, 2):
        keypoints, _ = default("sift", upsample=upsample)(image)
        x, y, diameter, _ = keypoints[np.argmin(np.abs(keypoints[:, :2] - [30, 25]).sum(1))]
        assert (x, y) == pytest.approx((30, 25), abs=0.3)
        assert diameter == pytest.approx(12 * 4, rel=0.25)  # 4 bins of 3 sigma


def test_the_dense_grid_is_whole_centred_and_inside():
    keypoints, _ = DenseSift(upsample=1, step=4, bin_sizes=[4, 8])(BLANK)
    small, large = keypoints[keypoints[:, 2] < 20], keypoints[keypoints[:, 2] > 20]
    assert (len(small), len(large)) == (13**2, 9**2)
    assert (small[0, 2], large[0, 2]) == (16, 32)
    for some in (small, large):
        np.testing.assert_allclose(some[:, :2].mean(0), 31.5)
        assert (some[:, :2] - some[:, 2:3] / 2).min() >= -0.5
    assert len(DenseSift(upsample=1, step=4, bin_sizes=[20])(BLANK)[0]) == 0  # 80 px do not fit


def test_an_image_of_nothing_has_no_keypoint_and_a_place_in_the_bag(photo):
    detectors = [Sift(1, 500, 0.04, 10, 1.6), Orb(2, 500, 20), FastBrief(2, 500, 20)]
    for detector in detectors:
        bag, _ = detector.describe(np.stack([BLANK, photo[:64, :64], BLANK]))
        assert len(bag) == 3
        assert bag.offsets[1] == 0 < bag.offsets[2] == bag.offsets[3] == len(bag.descriptors)
        assert set(bag.images) == {1}
        assert detector.describe(BLANK[None])[0].descriptors.shape == (0, detector.descriptor_bytes)
