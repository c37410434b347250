"""What every command says of itself, and that it is on the path."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import bagnet_lightning.config  # noqa: F401  registers resolvers
from bagnet_lightning.paths import CONF

ROOT = Path(__file__).parents[1]
CONFIG_OF = {
    path.stem: found[1]
    for path in (ROOT / "bagnet_lightning").glob("*.py")
    if (found := re.search(r'^@command\("(\w+)"', path.read_text(), re.MULTILINE))
}


def test_every_command_is_on_the_path():
    scripts = dict(
        re.findall(r'^bagnet-(\w+) = "bagnet_lightning\.(\w+):main"', (ROOT / "pyproject.toml").read_text(), re.M)
    )
    assert scripts == {name: name for name in CONFIG_OF}


@pytest.mark.parametrize("command", sorted(CONFIG_OF))
def test_help_tells_how_to_call_it_and_its_keys_on_one_screen(command):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(CONFIG_OF[command], return_hydra_config=True)
        help_text = config.hydra.help.template
    assert f"python -m bagnet_lightning.{command}" in help_text
    assert len(help_text.splitlines()) <= 40
    assert "Hydra" not in help_text
    own = [key for key in config if key not in ("hydra", "data", "model", "optim", "scheduler", "trainer", "logger")]
    told = {key for key in own if re.search(rf"^{key}:", help_text, re.M)}
    untold = {"recipe", "workspace", "pretrained_sha256", "image_files", "batches", "bagnet"}
    untold |= {"seed"} if command in ("prepare", "doctor") else set()  # where none is used
    assert set(own) - told <= untold
    defaults = {group: choice for group, choice in config.hydra.runtime.choices.items() if "/" not in group and choice}
    for group, choice in defaults.items() if "GROUP=CHOICE" in help_text else ():
        assert re.search(rf"^{group}: {choice} \(default\)", help_text, re.M)


@pytest.mark.parametrize("command", sorted(CONFIG_OF))
def test_no_key_is_also_a_group_of_choices(command):
    """Hydra would take KEY=VALUE for a choice, and refuse it."""
    config = OmegaConf.load(CONF / f"{CONFIG_OF[command]}.yaml")
    groups = {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra"}
    chosen = {str(name).split()[-1] for default in config.defaults if not isinstance(default, str) for name in default}
    assert {key for key in config if key in groups} <= chosen


def test_the_citation_and_the_package_have_one_version():
    version = re.search(r'^__version__ = "(.+)"', (ROOT / "bagnet_lightning/__init__.py").read_text(), re.MULTILINE)[1]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
