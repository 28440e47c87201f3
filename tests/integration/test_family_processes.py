"""An image does not depend on how many processes draw, in a family with a UNet and in one with a transformer."""

import os
import subprocess
from pathlib import Path

import pytest
import tiny_families
import warm

REPOSITORY = Path(__file__).parents[2]
PROGRAM = REPOSITORY / "tests/support/draw_in_processes.py"
TWO = ("-m", "torch.distributed.run", "--nproc-per-node", "2")


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_two_processes_draw_the_bytes_of_one(name: str, tmp_path: Path) -> None:
    checkpoint = tiny_families.checkpoint(name, tmp_path)
    given = warm.environment(os.environ | {"PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1"})
    drawn = []
    for launcher in ((), TWO):
        folder = tmp_path / str(len(launcher))
        command = ["python", *launcher, str(PROGRAM), str(checkpoint), str(folder)]
        subprocess.run(command, env=given, check=True, capture_output=True, timeout=300)
        drawn.append({file.name: file.read_bytes() for file in sorted((folder / "images").iterdir())})
    assert len(drawn[0]) == 6 and len(set(drawn[0].values())) == 6
    assert drawn[0] == drawn[1]
