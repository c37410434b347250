"""The page in a real browser: what pointer, keyboard and selects do. Skipped where there is no Chromium."""

import matplotlib
import numpy as np
import pytest
from browser import emulated, eventually, needs_browser
from PIL import Image
from trained_checkpoints import write_checkpoint

from bagnet_lightning.explanation.drawing import exact_limit
from bagnet_lightning.explanation.inputs import Picture
from bagnet_lightning.explanation.maps import explain, load_model
from bagnet_lightning.explanation.page import Page
from bagnet_lightning.presentation.overlays import COLOURS

pytest.importorskip("captum", reason="captum is an optional dependency: pip install 'bagnet-lightning[explain]'")
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

pytestmark = needs_browser


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    """The page's path, and each image's explanations by a BagNet-17 and a ResNet-18."""
    folder = tmp_path_factory.mktemp("page")
    models = [load_model(write_checkpoint(folder / f"{name}.ckpt", name), False) for name in ("bagnet17", "resnet18")]
    random = np.random.default_rng(0)
    pictures = []
    for name, size, label in (("first", (40, 30), 2), ("second", (24, 36), None)):
        coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        pictures.append(Picture(name, np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)), label))
    page = Page(models)
    explanations = [explain(models, picture, None, True) for picture in pictures]
    for picture, both in zip(pictures, explanations, strict=True):
        page.add(picture, both)
    path = folder / "index.html"
    path.write_text(page.html(), encoding="utf-8")
    return path, explanations, models[0].trained.class_names


@pytest.fixture
def page(browser, explained):
    browser.get(explained[0].as_uri())
    eventually(browser, lambda: browser.find_elements(By.CSS_SELECTOR, ".scores li"))
    yield browser
    logged = [entry["message"] for entry in browser.get_log("browser")]
    # Neither errors nor anything that the content policy blocked; reading canvases is what tests do, not the page.
    assert [message for message in logged if "readback operations" not in message] == []


def where(page) -> tuple[int, int]:
    words = page.find_element(By.CSS_SELECTOR, ".where").text.replace(",", "").split()
    return int(words[words.index("row") + 1]), int(words[words.index("column") + 1])


def wait_for_place(page, row, column):
    eventually(page, lambda: where(page) == (row, column))


def wait_for_stage(page, words):
    eventually(page, lambda: words in page.find_element(By.CSS_SELECTOR, ".stage").text)


def scores(page) -> list[tuple[int, float]]:
    items = page.find_elements(By.CSS_SELECTOR, ".scores li")
    return [
        (int(item.get_attribute("data-class")), float(item.text.splitlines()[-1].replace("−", "-"))) for item in items
    ]


def point(page, canvas, row, column, height, width):
    """A real pointer on the middle of a pixel."""
    from selenium.webdriver.common.action_chains import ActionChains

    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    box = canvas.rect
    across, down = ((column + 0.5) / width - 0.5) * box["width"], ((row + 0.5) / height - 0.5) * box["height"]
    ActionChains(page).move_to_element_with_offset(canvas, round(across), round(down)).perform()
    wait_for_place(page, row, column)


def check_scores(page, explanation):
    """The list under the pointer is torch.topk of the dense evidence, and the chosen class is in it."""
    row, column = where(page)
    chosen = int(page.find_element(By.ID, "class").get_property("value"))
    best, indices = explanation.dense[row, column].topk(5)
    listed = scores(page)
    assert [index for index, _ in listed[:5]] == indices.tolist()
    assert [score for _, score in listed[:5]] == pytest.approx(best.tolist(), abs=0.02)
    own = explanation.dense[row, column, chosen].item()
    assert dict(listed)[chosen] == pytest.approx(own, abs=0.02)


def pixel(page, canvas, row, column) -> list[int]:
    """RGB in the middle of an image pixel of a canvas."""
    script = """const [c, y, x, h, w] = arguments;
        return [...c.getContext("2d").getImageData((x + .5) * c.width / w, (y + .5) * c.height / h, 1, 1).data]"""
    return page.execute_script(script, canvas, row, column, 30, 40)[:3]


def test_hovering_shows_the_patch_its_outline_and_its_best_classes(page, explained):
    (bagnet, _), _ = explained[1]
    for canvas in page.find_elements(By.CSS_SELECTOR, ".model:first-child figure canvas")[:2]:
        for row, column in ((15, 20), (3, 37), (29, 0)):
            point(page, canvas, row, column, 30, 40)
            check_scores(page, bagnet)
    patch, picture = page.find_element(By.CSS_SELECTOR, "canvas.patch"), page.find_elements(By.TAG_NAME, "canvas")[0]
    point(page, picture, 15, 20, 30, 40)
    middle = page.execute_script("return [...arguments[0].getContext('2d').getImageData(8, 8, 1, 1).data]", patch)
    assert middle[:3] == pixel(page, picture, 15, 20)
    outline = page.execute_script(
        "const c = arguments[0], z = c.width / 40;"
        "return [...c.getContext('2d').getImageData((20 - 8) * z, (15 - 3) * z, 1, 1).data]",
        picture,
    )
    assert outline[:3] == [255, 230, 0]


def test_the_map_of_the_chosen_class_is_the_exact_evidence(page, explained):
    (bagnet, _), _ = explained[1]
    chosen = Select(page.find_element(By.ID, "class"))
    assert "predicted by BagNet-17" in " ".join(option.text for option in chosen.options)
    assert {int(option.get_attribute("value")) for option in chosen.options} == {*range(7)}
    page.execute_script(
        "const o = document.getElementById('overlay'); o.value = 100; o.dispatchEvent(new Event('input'))"
    )
    canvas = page.find_elements(By.CSS_SELECTOR, ".model:first-child figure canvas")[1]
    point(page, canvas, 29, 39, 30, 40)  # the outline out of the way
    for index in (bagnet.predicted, (bagnet.predicted + 1) % 7):
        chosen.select_by_value(str(index))
        wait_for_stage(page, f"for {explained[2][index]}")
        check_scores(page, bagnet)
        for row, column in ((0, 0), (7, 33), (19, 21), (11, 5)):
            share = bagnet.dense[row, column, index].item() / exact_limit([bagnet])
            expected = matplotlib.colormaps[COLOURS]((1 + max(-1, min(1, share))) / 2, bytes=True)[:3]
            assert pixel(page, canvas, row, column) == pytest.approx([int(v) for v in expected], abs=4)
    approximated = {*bagnet.shown}
    for index in {*range(7)} - approximated:
        chosen.select_by_value(str(index))
        assert page.find_element(By.CSS_SELECTOR, ".stage").text.count("not computed for this class") == 3


def test_a_class_against_another_is_the_difference_of_their_maps(page, explained):
    (bagnet, resnet), _ = explained[1]
    one, two = bagnet.shown[0], next(index for index in bagnet.shown[::-1] if index != bagnet.shown[0])
    names = explained[2][one], explained[2][two]
    page.execute_script(
        "const o = document.getElementById('overlay'); o.value = 100; o.dispatchEvent(new Event('input'))"
    )
    canvases = page.find_elements(By.CSS_SELECTOR, ".model figure canvas")
    point(page, canvases[1], 29, 39, 30, 40)  # the outline out of the way
    Select(page.find_element(By.ID, "class")).select_by_value(str(one))
    other = Select(page.find_element(By.ID, "other"))
    assert str(one) not in [option.get_attribute("value") for option in other.options]
    other.select_by_value(str(two))
    wait_for_stage(page, f"for {names[0]} against {names[1]}")
    gap = (bagnet.logits[one] - bagnet.logits[two]).item()
    assert f"against {names[1]}: {gap:+.3f}".replace("-", "−") in page.find_element(By.CSS_SELECTOR, ".logit").text
    exact = bagnet.dense[..., one] - bagnet.dense[..., two]
    places = [resnet.shown.index(index) for index in (one, two)]
    approximate = resnet.approximations["grad_cam"][places[0]] - resnet.approximations["grad_cam"][places[1]]
    for canvas, values in ((canvases[1], exact), (canvases[len(bagnet.maps()) + 2], approximate)):
        end = values.abs().flatten().sort().values[int(0.99 * (values.numel() - 1))].item()
        for row, column in ((0, 0), (7, 33), (19, 21), (11, 5)):
            share = values[row, column].item() / end
            expected = matplotlib.colormaps[COLOURS]((1 + max(-1, min(1, share))) / 2, bytes=True)[:3]
            assert pixel(page, canvas, row, column) == pytest.approx([int(v) for v in expected], abs=6)
    check_scores(page, bagnet)  # each class's own
    other.select_by_value("")
    wait_for_stage(page, f"for {names[0]}")
    assert "against" not in page.find_element(By.CSS_SELECTOR, ".stage").text


def test_of_two_classes_the_other_one_is_compared_with(browser, tmp_path):
    names = ["cat with a name that is far too long for a map", "dog with a name that is far too long for a map"]
    model = load_model(write_checkpoint(tmp_path / "best.ckpt", "bagnet9", names), True)
    page = Page([model])
    picture = Picture("one", np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8), 0)
    page.add(picture, explain([model], picture, None, False))
    (tmp_path / "index.html").write_text(page.html(), encoding="utf-8")
    browser.get((tmp_path / "index.html").as_uri())
    eventually(browser, lambda: "against" in browser.find_element(By.CSS_SELECTOR, ".stage").text)
    chosen = Select(browser.find_element(By.ID, "class"))
    for one, two in (names, names[::-1]):
        chosen.select_by_value(str(names.index(one)))
        wait_for_stage(browser, f"for {one} against {two}")
    assert len({canvas.rect["width"] for canvas in browser.find_elements(By.CSS_SELECTOR, ".stage canvas")}) == 1


def test_every_image_opens_on_its_own_predicted_class_until_one_is_chosen(page, explained):
    (first, _), (second, _) = explained[1]
    chosen = Select(page.find_element(By.ID, "class"))

    def shown(image: int) -> int:
        page.execute_async_script("const [image, done] = arguments; showImage(image).then(done)", image)
        return int(chosen.first_selected_option.get_attribute("value"))

    assert [shown(1), shown(0)] == [second.predicted, first.predicted]
    other = (first.predicted + 1) % 7
    chosen.select_by_value(str(other))
    assert shown(1) == other


def test_the_keyboard_reaches_everything_and_moves_the_patch(page, explained):
    (bagnet, _), (second, _) = explained[1]
    order = []
    for _ in range(5):
        page.switch_to.active_element.send_keys(Keys.TAB)
        active = page.switch_to.active_element
        order.append(active.get_attribute("id") or active.get_attribute("name") or active.get_attribute("class"))
    assert order == ["image", "class", "other", "overlay", "stage"]
    stage = page.switch_to.active_element
    page.find_element(By.CSS_SELECTOR, ".strongest button").click()
    row, column = where(page)
    page.execute_script("arguments[0].focus()", stage)
    steps = [(Keys.ARROW_DOWN, 1, 0), (Keys.ARROW_RIGHT, 0, 1), (Keys.ARROW_UP, -1, 0), (Keys.ARROW_LEFT, 0, -1)]
    for key, down, across in steps:
        stage.send_keys(key)
        row, column = row + down, column + across
        wait_for_place(page, row, column)
        check_scores(page, bagnet)
    spoken = page.find_element(By.ID, "spoken").get_attribute("textContent")
    assert f"row {row}, column {column}" in spoken
    assert "exact evidence" in spoken
    for _ in range(6):
        stage.send_keys(Keys.SHIFT + Keys.ARROW_RIGHT + Keys.NULL)
    assert where(page) == (row, 39)  # and no further

    page.find_element(By.CSS_SELECTOR, "input[name=image]").send_keys(Keys.ARROW_RIGHT)
    wait_for_stage(page, "second")
    check_scores(page, second)


def test_the_strongest_patches_lead_to_their_places(page, explained):
    (bagnet, _), _ = explained[1]
    buttons = page.find_elements(By.CSS_SELECTOR, ".strongest button")
    assert len(buttons) > 1
    for button in buttons:
        button.click()
        wait_for_place(page, int(button.get_attribute("data-y")), int(button.get_attribute("data-x")))
        shown = float(button.text.strip().replace("−", "-"))
        assert dict(scores(page))[bagnet.predicted] == pytest.approx(shown, abs=0.02)
        assert button.get_attribute("aria-pressed") == "true"


def test_a_resnet_is_said_to_be_approximated_and_every_control_has_a_label(page):
    resnet = page.find_elements(By.CSS_SELECTOR, ".model")[1]
    assert "approximations only" in resnet.text
    assert "exact evidence" not in resnet.text
    assert not resnet.find_elements(By.CSS_SELECTOR, "canvas.patch")
    unlabelled = page.execute_script(
        "return [...document.querySelectorAll('input, select')].filter(e => !e.labels.length).length +"
        "[...document.querySelectorAll('img')].filter(e => !e.alt).length"
    )
    assert unlabelled == 0


def test_on_a_phone_the_patch_is_in_sight_while_its_place_is_chosen(page):
    with emulated(page, 390, False):
        image, patch = page.find_element(By.CSS_SELECTOR, ".stage canvas"), page.find_element(By.CSS_SELECTOR, ".patch")
        page.execute_script("arguments[0].scrollIntoView({block: 'start'})", image)
        box = "const b = arguments[0].getBoundingClientRect(); return [b.top, b.bottom]"
        assert page.execute_script(box, image)[1] < page.execute_script(box, patch)[0]  # it hides no image
        assert page.execute_script(box, patch)[1] <= 844


def test_maps_are_side_by_side_and_large_enough_to_point_at_on_a_tablet(page):
    with emulated(page, 820, False):
        tops = "return [...document.querySelectorAll('.stage canvas')].map(c => c.getBoundingClientRect())"
        boxes = page.execute_script(tops)
        assert min(box["width"] for box in boxes) >= 140
        assert len({round(box["top"]) for box in boxes[:3]}) == 1
        wide = "return [...document.querySelectorAll('.ends')].filter(e => e.scrollWidth > e.clientWidth).length"
        assert page.execute_script(wide) == 0


def test_print_is_black_on_white_also_where_pages_are_dark(page):
    with emulated(page, 1280, True):
        dark = {"name": "prefers-color-scheme", "value": "dark"}
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": [dark]})
        style = "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
        assert page.execute_script(style) == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
        assert not page.find_element(By.ID, "class").is_displayed()
        assert page.find_element(By.CSS_SELECTOR, ".model .verdict").is_displayed()
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1280, True)])
def test_it_fits_a_phone_and_follows_the_colour_scheme(page, width, dark):
    with emulated(page, width, dark):
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        style = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
        assert (max(page.execute_script(style)) < 60) == dark
        hidden = (
            "return [...document.querySelectorAll('canvas')].filter(c => c.getBoundingClientRect().width < 50).length"
        )
        assert page.execute_script(hidden) == 0
