"""The page of results in a real browser: sorting, hovering, toggling, a failed run, a sweep that goes on."""

import json
import os
import socket
from threading import Thread

import pytest
from browser import emulated, eventually, needs_browser
from sweep_folders import write_related, write_run
from test_results_page import data_of, keep_predictions

from bagnet_lightning.reporting.page.data import page_data
from bagnet_lightning.reporting.page.page import results_page
from bagnet_lightning.reporting.page.server import Server
from bagnet_lightning.reporting.table import read_table
from bagnet_lightning.results import note_jobs

from selenium.webdriver.common.action_chains import ActionChains  # isort: skip
from selenium.webdriver.common.by import By  # isort: skip

pytestmark = needs_browser
CELLS = [("bagnet9", "sgd", 0.01), ("bagnet9", "adam", 0.35), ("bagnet17", "adam", 0.41), ("bagnet33", "adam", 0.44)]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Four finished runs, one of them again with another seed, and a failed one."""
    folder = tmp_path_factory.mktemp("sweep")
    for model, optimizer, accuracy in CELLS:
        write_run(folder / f"{model}_{optimizer}", model, optimizer, accuracy)
    write_run(folder / "bagnet33_adam_1", "bagnet33", "adam", 0.46, seed=1)
    failed = write_run(
        folder / "failed", "bagnet17", "adadelta", status="failed", error="ValueError: <b>no</b>", done=3
    )
    (failed / "train.log").write_text("Traceback\nValueError: <b>no</b>\n")
    keep_predictions(folder / "bagnet9_adam")
    (folder / "index.html").write_text(results_page(data_of(folder)), encoding="utf-8")
    return folder


@pytest.fixture
def page(browser, sweep):
    browser.get("about:blank")
    browser.get((sweep / "index.html").as_uri())
    yield browser
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def column(page, heading) -> list[str]:
    """The cells below a heading of the table."""
    headings = [th.text.rstrip(" ↑↓") for th in page.find_elements(By.CSS_SELECTOR, "#results thead tr:last-child th")]
    place = headings.index(heading) + 1
    return [cell.text for cell in page.find_elements(By.CSS_SELECTOR, f"#results tbody td:nth-child({place})")]


def sort_by(page, heading):
    page.find_element(By.XPATH, f"//table[@id='results']//th/button[text()='{heading}']").click()


def hover(page, canvas, across=0, down=0):
    """A real pointer, this many px from the middle."""
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    ActionChains(page).move_to_element_with_offset(canvas, round(across), round(down)).perform()


def tooltip(page, chart) -> str:
    shown = page.execute_script(
        "const t = charts[arguments[0]].tooltip; return t.opacity ? [...t.title, ...t.body.flatMap(b => b.lines)] : []",
        chart,
    )
    return " | ".join(shown)


def test_the_table_sorts_by_any_column_and_back(page):
    assert column(page, "row") == ["4", "5", "10", "12", "16"]
    sort_by(page, "accuracy")
    assert column(page, "accuracy") == ["0.4500", "0.4100", "0.3500", "0.0100", "failed"]
    assert page.switch_to.active_element.text.startswith("accuracy")
    sort_by(page, "accuracy")
    assert column(page, "accuracy") == ["0.0100", "0.3500", "0.4100", "0.4500", "failed"]  # what is unknown stays last
    sorted_by = page.find_elements(By.CSS_SELECTOR, "th[aria-sort=ascending]")
    assert [th.text.rstrip(" ↑↓") for th in sorted_by] == ["accuracy"]
    sort_by(page, "model")
    assert column(page, "model") == ["BagNet-9", "BagNet-9", "BagNet-17", "BagNet-17", "BagNet-33"]


def test_differences_spread_and_n_stand_beside_the_paper(page):
    assert column(page, "paper")[-1] == "0.4432"
    assert column(page, "difference") == ["+0.0048", "+0.0338", "−0.0134", "", "+0.0068"]
    assert (column(page, "±")[-1], column(page, "n")[-1]) == ("0.0141", "2")
    up, down = (page.find_element(By.CSS_SELECTOR, f"#results td.{name}") for name in ("up", "down"))
    assert (up.text[0], down.text[0]) == ("+", "−")
    assert up.value_of_css_property("color") != down.value_of_css_property("color")


def test_pointing_at_a_bar_and_at_a_curve_tells_their_values(page):
    bars = page.find_element(By.ID, "figure2-chart")
    place = "const c = charts['figure2-chart'], b = c.getDatasetMeta(2).data[2];"  # Adam's, of BagNet-33
    across, down = page.execute_script(place + "return [b.x - c.width / 2, (b.y + b.base) / 2 - c.height / 2]")
    hover(page, bars, across, down)
    eventually(page, lambda: tooltip(page, "figure2-chart") == "BagNet-33 | Adam: 45.00 % ± 1.41 (n = 2)")
    hover(page, page.find_element(By.ID, "accuracy-chart"))
    eventually(page, lambda: "epoch " in tooltip(page, "accuracy-chart"))
    place = "const c = charts['accuracy-chart'], p = c.getDatasetMeta(0).data[0];"
    offset = page.execute_script(place + "return [p.x - c.width / 2, p.y - c.height / 2]")
    curves = page.find_element(By.ID, "accuracy-chart")
    hover(page, curves, *offset)
    ActionChains(page).click().perform()
    eventually(page, lambda: page.find_element(By.CSS_SELECTOR, "#run h2").text.startswith("BagNet-"))


def test_all_bars_are_equally_wide_and_those_of_a_network_stand_together(page):
    bars = """return [0, 1, 2].map(i => charts["figure2-chart"].getSortedVisibleDatasetMetas()
        .map(meta => meta.data[i]).filter(bar => isFinite(bar.y) && bar.width).map(bar => [bar.x, bar.width]))"""
    groups = page.execute_script(bars)
    width = groups[0][0][1]
    for group in groups:
        assert {round(w, 3) for _, w in group} == {round(width, 3)}
        places = sorted(x for x, _ in group)
        assert places[-1] - places[0] <= (len(places) - 1) * width + 1


def test_legends_toggle_what_is_drawn(page):
    def drawn(chart):
        return page.execute_script("return charts[arguments[0]].data.datasets.map(d => d.label)", chart)

    assert drawn("figure2-chart")[:4] == ["SGD", "SGD, the paper", "Adam", "Adam, the paper"]
    adam = page.find_element(By.ID, "figure2-toggles-adam")
    adam.click()
    assert adam.get_attribute("aria-pressed") == "false"
    assert not any(label == "Adam" for label in drawn("figure2-chart"))
    page.find_element(By.ID, "figure2-toggles-paper").click()
    assert not any("paper" in label for label in drawn("figure2-chart"))
    adam.click()
    assert "Adam" in drawn("figure2-chart")
    assert len(drawn("loss-chart")) == 6
    page.find_element(By.ID, "curves-toggles-bagnet33").click()
    assert len(drawn("loss-chart")) == len(drawn("accuracy-chart")) == 4


def test_a_run_has_its_own_place(page):
    page.find_element(By.LINK_TEXT, "BagNet-9").click()
    eventually(page, lambda: not page.find_element(By.ID, "overview").is_displayed())
    page.execute_script("location.hash = 'run=bagnet9_adam'")
    run = page.find_element(By.ID, "run")
    eventually(page, lambda: "BagNet-9, Adam" in run.text)
    for words in ("0.3500", "0.210 device hours", "1 × NVIDIA H200", "model=bagnet9 optim=adam", "trilobite taken for"):
        assert words in run.text
    assert len(run.find_elements(By.CSS_SELECTOR, ".thumb")) == 2
    assert "One of" not in run.text
    neighbours = {link.text for link in run.find_elements(By.CSS_SELECTOR, ".neighbours a")}
    assert neighbours == {"optimizer SGD", "model BagNet-17", "model BagNet-33"}
    page.find_element(By.LINK_TEXT, "← all runs").click()
    eventually(page, page.find_element(By.ID, "overview").is_displayed)


def test_a_row_of_several_seeds_leads_to_all_of_them(page):
    page.find_element(By.LINK_TEXT, "BagNet-33").click()
    run = page.find_element(By.ID, "run")
    said = "One of 2 runs that differ in their seed or fold alone, mean 0.4500 ± 0.0141: seed 0 0.4400, seed 1 0.4600."
    eventually(page, lambda: said in run.text)
    run.find_element(By.LINK_TEXT, "seed 1").click()
    eventually(page, lambda: "BagNet-33, Adam, 15 epochs, seed 1" in run.text)
    assert said in run.text
    assert run.find_element(By.PARTIAL_LINK_TEXT, "seed").text == "seed 0"


def test_back_and_all_runs_lead_to_where_the_reader_was(page):
    run, overview = page.find_element(By.ID, "run"), page.find_element(By.ID, "overview")
    link = page.find_elements(By.LINK_TEXT, "BagNet-17")[0]
    page.execute_script("arguments[0].scrollIntoView({block: 'start'})", link)
    place = page.execute_script("return scrollY")
    assert place > 100
    link.click()
    eventually(page, run.is_displayed)
    assert page.execute_script("return scrollY") == 0
    assert page.switch_to.active_element.text.startswith("BagNet-17, Adam")
    page.back()
    eventually(page, overview.is_displayed)
    eventually(page, lambda: page.execute_script("return scrollY") == place)
    assert page.switch_to.active_element.get_attribute("hash") == "#run=bagnet17_adam"
    page.forward()
    eventually(page, run.is_displayed)
    page.find_element(By.LINK_TEXT, "← all runs").click()
    eventually(page, overview.is_displayed)
    assert page.execute_script("return scrollY") == place


def test_a_failed_run_shows_why_and_how_to_run_it_again(page):
    page.find_element(By.CSS_SELECTOR, "#progress a").click()
    run = page.find_element(By.ID, "run")
    eventually(page, lambda: "failed" in run.text)
    assert run.find_element(By.CSS_SELECTOR, ".error").text == "ValueError: <b>no</b>"
    assert run.find_element(By.CSS_SELECTOR, ".log").text == "Traceback\nValueError: <b>no</b>"
    assert "python -m bagnet_lightning.train model=bagnet17 optim=adadelta" in run.text
    page.execute_script("location.hash = 'run=none'")
    eventually(page, lambda: "There is no run none here." in run.text)


def test_related_systems_alone_have_a_table_that_sorts_and_no_empty_charts(browser, tmp_path):
    for features, accuracy in (("sift", 0.1), ("orb", 0.3), ("dense_sift", 0.2)):
        write_related(tmp_path / features, features, accuracy=accuracy)
    (tmp_path / "index.html").write_text(results_page(data_of(tmp_path)), encoding="utf-8")
    browser.get((tmp_path / "index.html").as_uri())
    shown = [heading.text for heading in browser.find_elements(By.TAG_NAME, "h2") if heading.is_displayed()]
    assert shown == ["Related systems"]
    browser.find_element(By.ID, "related-/accuracy").click()
    systems = browser.find_elements(By.CSS_SELECTOR, "#related tbody td:first-child")
    assert [cell.text.partition(",")[0] for cell in systems] == ["ORB", "dense SIFT", "SIFT"]
    systems[0].find_element(By.TAG_NAME, "a").click()
    run = browser.find_element(By.ID, "run")
    eventually(browser, lambda: "ORB, 1,000 words, linear SVM, seed 0" in run.text)
    assert "python -m bagnet_lightning.classical features=orb classifier=linear" in run.text
    assert not run.find_elements(By.TAG_NAME, "canvas")
    assert [entry["message"] for entry in browser.get_log("browser")] == []


@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1280, True)])
@pytest.mark.parametrize("fragment", ["", "run=bagnet9_adam"])
def test_it_fits_a_phone_and_follows_the_colour_scheme(page, width, dark, fragment):
    with emulated(page, width, dark):
        page.execute_script("location.hash = arguments[0]; show()", fragment)
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        colours = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
        assert (max(page.execute_script(colours)) < 60) == dark


def test_charts_keep_their_shape_in_print(page):
    as_on_a_screen = "Object.assign(c, {width: 1146, height: 330}).style.cssText = 'width: 1146px; height: 330px'"
    with emulated(page, 700, False):
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        shape = f"const c = at('figure2-chart'); {as_on_a_screen}; return [c.offsetWidth, c.offsetHeight]"
        width, height = page.execute_script(shape)
        assert width <= 700
        assert width / height == pytest.approx(1146 / 330, abs=0.02)
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_a_phone_shows_the_accuracy_and_what_it_is_of_at_once(page):
    with emulated(page, 390, False):
        eventually(page, lambda: page.find_element(By.CSS_SELECTOR, "#results thead").text.startswith("model"))
        # At once, for the page may draw the table again meanwhile.
        shown = page.execute_script(
            "return [...document.querySelectorAll('#results th')]"
            ".filter(th => th.getBoundingClientRect().right <= 390).map(th => th.innerText)"
        )
        assert shown[:4] == ["model", "optimizer", "accuracy", "row"]
        cell = page.execute_script(
            "document.querySelector('#table1 .wide').scrollLeft = 1000; const cell = document.querySelector("
            "'#results tbody td'); return [cell.innerText, cell.getBoundingClientRect().x >= 0]"
        )
        assert cell == ["BagNet-9", True]  # beside whatever is scrolled to
    assert column(page, "row") == ["4", "5", "10", "12", "16"]


def test_a_sweep_in_progress_renews_itself_and_keeps_what_the_reader_chose(browser, tmp_path):
    write_run(tmp_path / "done", "bagnet9", "adam", 0.35)
    note_jobs(tmp_path, {"done": [], "going": [], "next": []})

    def report(epoch):
        lines = (tmp_path / "done/metrics.csv").read_text().splitlines()
        (tmp_path / "going/metrics.csv").write_text("\n".join(lines[:epoch]) + "\n")
        progress = {
            "epoch": epoch,
            "epochs": 15,
            "step": 100 * epoch,
            "steps": 1500,
            "seconds_left": 600.0 - 60 * epoch,
        }
        progress |= {"pid": os.getpid(), "host": socket.gethostname()}
        (tmp_path / "going/progress.json").write_text(json.dumps(progress))

    write_run(tmp_path / "going", "bagnet17", "adam", status=None)
    report(2)
    with Server(0, lambda: page_data([read_table(tmp_path)], {}, False, live=True)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        browser.get(server.url)
        told = browser.find_element(By.ID, "progress").text
        assert "epoch 2 of 15, step 200 of 1,500, about 8 min left" in told
        assert "1 waiting" in told
        assert "1 finished, 1 running, 1 waiting" in browser.find_element(By.ID, "counts").text
        sort_by(browser, "accuracy")
        browser.find_element(By.ID, "curves-toggles-bagnet9").click()
        browser.execute_script("scrollTo(0, 400)")
        report(7)
        eventually(browser, lambda: "epoch 7 of 15" in browser.find_element(By.ID, "progress").text)
        assert browser.execute_script("return scrollY") == 400
        assert browser.find_elements(By.CSS_SELECTOR, "th[aria-sort=descending]")
        assert browser.execute_script("return charts['accuracy-chart'].data.datasets.length") == 1
        browser.execute_script("location.hash = 'run=going'")
        report(9)
        run = browser.find_element(By.ID, "run")
        browser.execute_script("refresh()")  # as its clock has done
        eventually(browser, lambda: "epoch 9 of 15" in run.text)
        server.shutdown()
    browser.execute_script("refresh()")
    eventually(browser, lambda: "has ended" in browser.find_element(By.ID, "made").text)
