"""The page of keypoints in a real browser: pointing, classes, keys, what is hidden, a phone."""

import numpy as np
import pytest
from browser import emulated, eventually, needs_browser
from local_models import local_model, noise
from test_explain_keypoints import EMPTY, SYSTEMS
from trained_checkpoints import CLASS_NAMES, CLASSES

from bagnet_lightning.explanation.inputs import Picture
from bagnet_lightning.explanation.keypoint_maps import explain
from bagnet_lightning.explanation.keypoint_page import KeypointPage

from selenium.webdriver.common.action_chains import ActionChains  # isort: skip
from selenium.webdriver.common.by import By  # isort: skip
from selenium.webdriver.common.keys import Keys  # isort: skip
from selenium.webdriver.support.ui import Select  # isort: skip

pytestmark = needs_browser


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    """The page's file, and the explanations of its three images; the last has no keypoints."""
    model = local_model(*SYSTEMS[0])
    first, second = noise(2)
    pictures = [Picture("first", first, 2), Picture("second", second, None), EMPTY]
    explanations = [explain(model, picture, None) for picture in pictures]
    page = KeypointPage("SIFT, 12 words, linear SVM", False, CLASSES, CLASS_NAMES)
    for picture, explanation in zip(pictures, explanations, strict=True):
        page.add(picture, explanation)
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(page.html(), encoding="utf-8")
    return path, explanations


@pytest.fixture
def page(browser, explained):
    browser.get("about:blank")
    browser.get(explained[0].as_uri())
    eventually(browser, lambda: browser.find_element(By.ID, "where").text)
    yield browser
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def scores(page) -> dict[int, float]:
    items = page.find_elements(By.CSS_SELECTOR, ".scores li")
    return {int(i.get_attribute("data-class")): float(i.text.split()[-1].replace("−", "-")) for i in items}


def chosen(page) -> int:
    return page.execute_script("return state.point")


def check(page, explanation, label):
    """What is said of the chosen keypoint is what the numbers are."""
    shares = explanation.shares[chosen(page)]
    said = scores(page)
    assert said == pytest.approx({index: shares[index] for index in said}, abs=6e-3)
    assert label in said
    assert set(np.argsort(-shares)[:5]) <= set(said)
    x, y, size, _ = explanation.keypoints[chosen(page)]
    assert f"({x:.1f}, {y:.1f}), {size:.0f} px" in page.find_element(By.ID, "where").text
    assert f"word {explanation.words[chosen(page)]}" in page.find_element(By.ID, "where").text


def test_pointing_at_a_keypoint_tells_its_shares(page, explained):
    explanation = explained[1][0]
    check(page, explanation, explanation.predicted)  # the strongest, at first
    canvas = page.find_element(By.ID, "drawn")
    for point in (0, 3):
        x, y, *_ = explanation.keypoints[point]
        across, down = ((value + 0.5) / 40 * canvas.size["width"] - canvas.size["width"] / 2 for value in (x, y))
        ActionChains(page).move_to_element_with_offset(canvas, round(across), round(down)).perform()
        middle = explanation.keypoints[point, :2]
        eventually(page, lambda: np.abs(explanation.keypoints[chosen(page), :2] - middle).max() < 0.5)  # noqa: B023
        check(page, explanation, explanation.predicted)
    assert f"score {explanation.scores[explanation.predicted]:+.2f}" in page.find_element(By.ID, "sum").text


def test_another_class_has_its_own_strongest_keypoints(page, explained):
    explanation = explained[1][0]
    classes = Select(page.find_element(By.ID, "class"))
    assert {int(option.get_attribute("value")) for option in classes.options} == set(range(7))
    for index in (2, 5):
        classes.select_by_value(str(index))
        buttons = page.find_elements(By.CSS_SELECTOR, ".strongest button")
        point = int(buttons[0].get_attribute("data-point"))
        assert point == explanation.shares[:, index].argmax() or explanation.shares[:, index].max() <= 0
        buttons[0].click()
        assert chosen(page) == point
        assert buttons[0].get_attribute("aria-pressed") == "true"
        check(page, explanation, index)


def test_the_keys_go_from_the_strongest_to_the_weakest_of_those_shown(page, explained):
    explanation = explained[1][0]
    order = np.argsort(-np.abs(explanation.shares[:, explanation.predicted]), kind="stable").tolist()
    stage = page.find_element(By.ID, "stage")
    strength = np.abs(explanation.shares[:, explanation.predicted])
    stage.send_keys(Keys.HOME)
    assert strength[chosen(page)] == strength.max()
    stage.send_keys(Keys.ARROW_RIGHT)
    assert strength[chosen(page)] == pytest.approx(strength[order[1]], rel=1e-3)
    assert f"number 2 of {len(order)}" in page.find_element(By.ID, "spoken").get_attribute("textContent")
    page.execute_script(
        "const h = document.getElementById('hidden'); h.value = 90; h.dispatchEvent(new Event('input'))"
    )
    left = -(-len(order) // 10)
    assert page.find_element(By.ID, "share").text == f"{left} of {len(order)} shown"
    stage.send_keys(Keys.ARROW_DOWN * len(order))
    assert strength[chosen(page)] == pytest.approx(strength[order[left - 1]], rel=1e-3)


def test_an_image_without_keypoints_says_so(page, explained):
    page.find_elements(By.CSS_SELECTOR, "input[name=image]")[2].send_keys(Keys.SPACE)
    eventually(page, lambda: "Nothing was found" in page.find_element(By.ID, "sum").text)
    assert not page.find_element(By.CSS_SELECTOR, ".inspector").is_displayed()
    page.find_element(By.ID, "stage").send_keys(Keys.ARROW_RIGHT)
    ActionChains(page).move_to_element(page.find_element(By.ID, "drawn")).perform()
    page.find_elements(By.CSS_SELECTOR, "input[name=image]")[1].send_keys(Keys.SPACE)
    eventually(page, page.find_element(By.CSS_SELECTOR, ".inspector").is_displayed)
    check(page, explained[1][1], explained[1][1].predicted)


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
def test_it_fits_a_phone_and_follows_the_colour_scheme(page, width, dark):
    with emulated(page, width, dark):
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        style = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
        assert (max(page.execute_script(style)) < 60) == dark
        numbers = "return [...document.querySelectorAll('.scores li > :last-child')]"
        page.execute_script(numbers + ".forEach(e => { e.textContent = '−0.00888'; })")  # the widest that there is
        assert page.execute_script(numbers + ".filter(e => e.scrollWidth > e.clientWidth).length") == 0
