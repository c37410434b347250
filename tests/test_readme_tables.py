import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = runpy.run_path(str(ROOT / "benchmarks" / "readme_tables.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readmes_tables_are_those_of_results():
    assert SCRIPT["with_tables"](README) == README, "results/ has changed: make readme-tables"


def test_ours_stand_beside_the_papers_only_where_they_may_be_compared(tmp_path, monkeypatch):
    (tmp_path / "table1_paper.csv").write_text(
        "paper_row,accuracy,accuracy_std,n,not_comparable,status,device,precision,torch,commit\n"
        "10,0.4321,0.0012,3,,finished,one card,32-true,2.13.0,abc\n"
        "16,0.5,,1,10 of 200 classes,finished,one card,32-true,2.13.0,abc\n"
        "17,,,0,,failed,one card,32-true,2.13.0,abc\n"
    )
    monkeypatch.setitem(SCRIPT["finished"].__globals__, "RESULTS", tmp_path)
    lines = SCRIPT["table1"]().splitlines()
    assert "| 10 | BagNet-17 | Adam |  | 15 | 0.4234 | 0.4321 ± 0.0012 | 3 |" in lines
    assert "| 16 | BagNet-33 | Adam |  | 15 | 0.4432 |  |  |" in lines
    assert "| 17 | BagNet-33 | Adadelta |  | 15 | 0.4395 |  |  |" in lines
    assert lines[-1].startswith("one card, 32-true, torch 2.13.0, commit abc.")


def test_the_modern_recipe_stands_beside_each_models_best_row(tmp_path, monkeypatch):
    (tmp_path / "table1_modern.csv").write_text(
        "model,model.stem,epochs,accuracy,accuracy_std,n,status,device,precision,torch,commit\n"
        "bagnet9,,15,0.43,0.002,3,finished,one card,bf16-mixed,2.13.0,abc\n"
        "bagnet17,,5,0.44,,1,finished,one card,bf16-mixed,2.13.0,abc\n"
        "resnet18,small,15,0.63,0.001,3,finished,one card,bf16-mixed,2.13.0,abc\n"
    )
    monkeypatch.setitem(SCRIPT["finished"].__globals__, "RESULTS", tmp_path)
    lines = SCRIPT["modern"]().splitlines()
    assert "| BagNet-9 | 15 | 0.3170 | 0.4300 ± 0.0020 | 3 |" in lines
    assert "| BagNet-17 | 5 | 0.2359 | 0.4400 | 1 |" in lines
    assert "| BagNet-17 | 15 | 0.4234 |  |  |" in lines
    assert "| ResNet-18, ordinary stem | 15 | 0.2594 |  |  |" in lines
    assert "| ResNet-18, small stem | 15 |  | 0.6300 ± 0.0010 | 3 |" in lines


def test_a_readme_without_its_markers_is_refused():
    with pytest.raises(SystemExit, match="table1"):
        SCRIPT["with_tables"]("# no tables")
