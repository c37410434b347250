"""The wheel holds what the commands need, and the README says what the Makefile and the code do."""

import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
from conftest import composed
from hydra.errors import HydraException
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from bagnet_lightning.paths import CONF
from bagnet_lightning.rules import check

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A clean environment with the wheel in it; what the wheel depends on is lent from this one."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    (wheel,) = folder.glob("*.whl")
    target = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel]
    subprocess.run(target, check=True, capture_output=True)
    lent = [path for path in sys.path if path.endswith("site-packages")]
    (site / "lent.pth").write_text("\n".join(lent))
    return folder / "env/bin/python"


def test_every_pin_can_be_installed_by_the_oldest_python():
    oldest = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        pin = Requirement(line.partition("#")[0]) if line.partition("#")[0].strip() else None
        if pin and (pin.marker is None or pin.marker.evaluate({"python_version": oldest})):
            try:
                needed = metadata(pin.name).get("Requires-Python")
            except PackageNotFoundError:  # of an extra that is not installed here
                continue
            assert SpecifierSet(needed or "").contains(oldest), f"{pin} needs Python {needed}"


def run(python, *arguments, cwd):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run([python, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)


def test_the_wheel_works_without_the_checkout(installed, tmp_path):
    where = run(installed, "-c", "import bagnet_lightning; print(bagnet_lightning.__file__)", cwd=tmp_path)
    assert str(installed.parents[1]) in where.stdout
    small = ["data=textures", "data.train_images=12", "data.val_images=6", "data.batch_size=6", "model.width=0.25"]
    trained = run(installed, "-m", "bagnet_lightning.train", *small, "trainer.max_epochs=1", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    reported = run(installed, "-m", "bagnet_lightning.report", "runs=multirun_outputs/textures", cwd=tmp_path)
    assert reported.returncode == 0, reported.stderr
    assert "1 of 1 runs finished" in reported.stdout


def make(target: str) -> str:
    """The commands that `make TARGET` would run."""
    shown = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True)
    return shown.stdout


def readme_commands() -> list[str]:
    """Of the README and what it links to in docs/."""
    commands = []
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = file.read_text(encoding="utf-8").replace("\\\n", " ")
        commands += [" ".join(line.split()) for line in text.splitlines() if line.startswith("    python -m bagnet")]
    return commands


def test_makes_grid_is_the_readmes():
    grid = next(line for line in readme_commands() if "train -m model=" in line).removeprefix("python ")
    assert grid in make("train")
    assert "table1=glob(*)" in make("table1")


def test_the_readme_tells_of_make_targets_that_are_there_and_work():
    targets = set(re.findall(r"^([a-z0-9-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    told = set(re.findall(r"\bmake ([a-z0-9-]+)", (ROOT / "README.md").read_text()))
    assert told <= targets
    for target in targets:
        assert make(target)


@pytest.mark.parametrize("line", readme_commands())
def test_the_readmes_commands_compose(line):
    _, _, module, *words = shlex.split(line)
    name = module.removeprefix("bagnet_lightning.")
    choices = []
    for word in words:
        key, _, value = word.partition("=")
        if value == "glob(*)":
            value = min(path.stem for path in (CONF / key).glob("*.yaml"))
        if key == "model.pretrained":
            value = __file__  # any file
        if word != "-m":
            choices.append(f"{'++' if key.startswith('data.') else ''}{key}={value.split(',')[0]}")
    try:
        config = composed(*choices, name="config" if name == "train" else name)
        if name in ("train", "classical", "pretrain"):
            check(config)
    except HydraException as error:
        pytest.fail(str(error))


def test_the_links_of_the_docs_lead_to_files():
    for file in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "results").rglob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", file.read_text(encoding="utf-8")):
            assert (file.parent / link).exists(), f"{file}: {link}"
