"""With what a run was trained: code, versions, device and precision of all processes that continued it."""

from pytorch_lightning import Callback


class Provenance(Callback):
    """Checkpoints hold what each process trained with, so that the result of a continued run names all of it.

    values: name -> text, or a dictionary of such, of this process.
    """

    def __init__(self, **values: str | dict[str, str] | None):
        self.processes = [values]

    def state_dict(self) -> dict:
        return {"processes": self.processes}

    def load_state_dict(self, state: dict) -> None:
        earlier = [process for process in state["processes"] if process not in self.processes]
        self.processes = earlier + self.processes

    def result(self) -> dict[str, str | dict[str, str] | None]:
        """Returns the values of this process, "EARLIER / THIS" where an earlier one had another."""
        return _joined(self.processes)


def _joined(processes: list[dict]) -> dict:
    joined = {}
    for name, value in processes[-1].items():
        values = [process.get(name) for process in processes]
        if isinstance(value, dict):
            joined[name] = _joined([value for value in values if isinstance(value, dict)])
        else:
            joined[name] = " / ".join(dict.fromkeys(map(str, filter(None, values)))) or None
    return joined
