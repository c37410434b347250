"""What hydra/launcher=slurm says where it cannot work. With a real SLURM: tests/cluster/test_slurm.py."""

import pytest
from conftest import SMALL
from test_commands import one_line

SWEEP = ["-m", *SMALL, "trainer.accelerator=gpu", "optim=sgd,adam", "hydra/launcher=slurm"]


@pytest.fixture
def programs(tmp_path):
    """A folder for the PATH."""
    folder = tmp_path / "programs"
    folder.mkdir()
    return folder


def program(folder, name, text="#!/bin/sh\n"):
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def test_without_the_package_or_sbatch_it_says_so(command, tmp_path, programs):
    assert "there is no sbatch here" in one_line(command("train", *SWEEP, PATH=str(programs)))
    (tmp_path / "submitit.py").write_text("raise ModuleNotFoundError('submitit')")
    assert "pip install 'bagnet-lightning[slurm]'" in one_line(command("train", *SWEEP))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("hydra.launcher.timeout_min=long", "hydra.launcher: Value 'long'"),
        ("+hydra.launcher.partiton=gpu", "hydra.launcher: Key 'partiton' not in"),
        ("trainer.devices=2", "trainer.devices=2 needs hydra.launcher.gpus_per_node=2"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(command, programs, setting, words):
    for name in ("sbatch", "srun", "squeue"):
        program(programs, name)
    assert words in one_line(command("train", *SWEEP, setting, PATH=f"{programs}:/usr/bin:/bin"))


def test_when_slurm_does_not_answer_no_job_is_submitted_twice(command, tmp_path, programs):
    for name in ("srun", "sbatch"):
        program(programs, name, f"#!/bin/sh\ntouch {tmp_path}/submitted\n")
    program(programs, "squeue", "#!/bin/sh\nexit 1\n")
    assert "SLURM does not answer" in one_line(command("train", *SWEEP, PATH=f"{programs}:/usr/bin:/bin"))
    assert not (tmp_path / "submitted").exists()


def test_jobs_that_slurm_refuses(command, programs):
    for name in ("srun", "squeue"):
        program(programs, name)
    program(programs, "sbatch", "#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpu' >&2\nexit 1\n")
    refused = command("train", *SWEEP, "hydra.launcher.partition=gpu", PATH=f"{programs}:/usr/bin:/bin")
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [
        "sbatch: error: invalid partition specified: gpu",
        "error: SLURM refused the jobs, as sbatch says above",
    ]
