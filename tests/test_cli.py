"""How arguments are read, before and besides what Hydra makes of them."""

import io
import sys

import pytest

from bagnet_lightning.cli import _quoted_for_hydra, command


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("checkpoint=runs/best.ckpt", "checkpoint=runs/best.ckpt"),
        ("out=null", "out=null"),
        ("runs=a,b", "runs=a,b"),
        ("checkpoint=[a,b]", "checkpoint=[a,b]"),
        ("images='it is (quoted).png'", "images='it is (quoted).png'"),
        ("data.root=${oc.env:HERE}", "data.root=${oc.env:HERE}"),
        ("data.root=~/images", "data.root=/home/me/images"),
        ("+data.root=~", "+data.root=/home/me"),
        ("runs=~/a,~/b", "runs=/home/me/a,/home/me/b"),
        ("checkpoint=[~/a,b~]", "checkpoint=[/home/me/a,b~]"),
        ("model.pretrained=~/w.pt", "model.pretrained=/home/me/w.pt"),
        ("data.root=~user", "data.root='~user'"),
        ("images=it's, (1).png", r"images='it\'s, (1).png'"),
        ("images=2024", "images='2024'"),
        ("images=vögel/a (1)=b.png", "images='vögel/a (1)=b.png'"),
        ("model=17", "model='17'"),
        ("table1=glob(*)", "table1=glob(*)"),
        ("trainer.max_epochs=3", "trainer.max_epochs=3"),
        ("~logger", "~logger"),
        ("--help", "--help"),
    ],
)
def test_paths_may_be_typed_as_they_are(typed, read, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert _quoted_for_hydra(typed) == read


def test_a_terminal_that_lacks_a_letter_gets_it_spelt_out(monkeypatch):
    @command("prepare")
    def told(config):
        print("日本")

    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "argv", ["prepare", "data=textures"])
    told()
    assert terminal.buffer.getvalue() == rb"\u65e5\u672c" + b"\n"
