from bagnet_lightning.training.provenance import Provenance


def test_a_continued_run_names_all_that_it_was_trained_with():
    first = Provenance(versions={"torch": "2.11.0"}, commit="a", device="T4", precision="16-mixed")
    assert first.result() == first.processes[0]
    second = Provenance(versions={"torch": "2.13.0"}, commit="a", device="T4", precision="16-mixed")
    second.load_state_dict(first.state_dict())
    third = Provenance(versions={"torch": "2.11.0"}, commit="b", device="H200", precision=None)
    third.load_state_dict(second.state_dict())
    assert third.result() == {
        "versions": {"torch": "2.11.0 / 2.13.0"},
        "commit": "a / b",
        "device": "T4 / H200",
        "precision": "16-mixed",
    }
    again = Provenance(**first.processes[0])
    again.load_state_dict(first.state_dict())
    assert len(again.processes) == 1  # however often it was continued
