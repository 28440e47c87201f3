"""A place in order has no problem; each planted one is found, with its remedy."""

import http.server
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from t2i_feedback import params
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.tools.doctor import __main__ as program
from t2i_feedback.tools.doctor import fits, machine, reach, repository
from t2i_feedback.tools.doctor.checks import CHECKS, Finding, check
from t2i_feedback.tools.doctor.machine import Gpu, Torch
from t2i_feedback.tools.estimate import figures

REPOSITORY = Path(__file__).parents[3]
A100 = "NVIDIA A100-SXM4-80GB, 81920, 81000, 550.54.15"
Patch = pytest.MonkeyPatch
pytestmark = pytest.mark.slow  # needs git and other processes


@pytest.fixture
def place(tmp_path: Path, monkeypatch: Patch) -> Path:
    """A repository in order, on a machine without a GPU."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(fits.pace, "probe", lambda: 200.0)  # a second; test_pace has it
    for variable in ("DVC_ROOT", "MLFLOW_TRACKING_URI", "CUDA_VISIBLE_DEVICES", "OPENAI_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    for name in ("params.yaml", "dvc.yaml", "dvc.lock", "requirements.txt", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, name)
    for name in (
        "estimates",
        *(f"models/postcards/{one}" for one in ("sd", "sd3", "mllm", "judge", "oracle")),
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).symlink_to(REPOSITORY / name)
    for name in (".dvc/tmp", ".cache"):
        Path(name).mkdir(parents=True)
    shutil.copy(REPOSITORY / ".dvc/config", ".dvc/config")
    subprocess.run(["git", "init", "--quiet"], check=True)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(machine, "torch_here", lambda: Torch("2.14.1", "13.0", False))
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(machine, "memory_gb", lambda: (16.0, 12.0))
    return here


def looked(quick: bool = False) -> list[Finding]:
    return [one for found in program.findings(quick).values() for one in found]


def bad(quick: bool = False) -> list[str]:
    """Problems and warnings as they are printed."""
    return [str(one) for one in looked(quick) if one.verdict in ("problem", "warning")]


def change(**values: Any) -> None:
    """Keys of params.yaml, two underscores for the dot."""
    content = yaml.safe_load(Path("params.yaml").read_text())
    for dotted, value in values.items():
        *sections, last = dotted.split("__")
        section = content
        for one in sections:
            section = section[one]
        section[last] = value
    Path("params.yaml").write_text(yaml.safe_dump(content))


def closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def serve_by(port: int, **more: Any) -> None:
    """Let a server be the enhancer and validator."""
    entry = {"backend": "endpoint", "model": "small", "base_url": f"http://127.0.0.1:{port}/v1", **more}
    change(mllms__served=entry, stage1__mllm="served")


def own_copy(folder: str) -> Path:
    """A folder of a model that a test may damage."""
    place = Path(folder)
    place.unlink()
    shutil.copytree(REPOSITORY / folder, place)
    return place


def program_called(name: str, script: str) -> None:
    path = Path("../bin") / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


# ------------------------------------------------------------------------------------------- planted problems


def disk(patch: Patch, free: int) -> None:
    usage = namedtuple("usage", "total used free")
    patch.setattr(shutil, "disk_usage", lambda _: usage(2**42, 2**42 - free, free))


def full_disk(patch: Patch) -> None:
    disk(patch, 2**24)


def little_memory(patch: Patch) -> None:
    patch.setattr(machine, "memory_gb", lambda: (1.0, 0.5))


def memory_in_use(patch: Patch) -> None:
    patch.setattr(machine, "memory_gb", lambda: (16.0, 0.5))


def unknown_key(patch: Patch) -> None:
    change(model__stepps=10)


def conflict(patch: Patch) -> None:
    path = Path("params.yaml")
    both = "<<<<<<< HEAD\nseed: 2\n=======\nseed: 1\n>>>>>>> other\n"
    path.write_text(path.read_text().replace("seed: ", f"{both}seed: ", 1))


def half_a_lock_file(patch: Patch) -> None:
    path = Path("dvc.lock")
    path.write_text(path.read_text()[:1000] + "\n  - [")


def half_a_stage(patch: Patch) -> None:
    Path("dvc.lock").write_text("schema: '2.0'\nstages:\n  check:\n")


def no_pipeline(patch: Patch) -> None:
    Path("dvc.yaml").unlink()


def no_git(patch: Patch) -> None:
    program_called("dvc", "exit 0")
    patch.setenv("PATH", str(Path("../bin").resolve()))


def no_clone(patch: Patch) -> None:
    shutil.rmtree(".git")
    patch.setenv("GIT_CEILING_DIRECTORIES", str(Path.cwd().parent))


def killed_git(patch: Patch) -> None:
    Path(".git/index.lock").touch()


def no_dvc(patch: Patch) -> None:
    program_called("git", "echo .git/index.lock")
    patch.setenv("PATH", str(Path("../bin").resolve()))


def broken_dvc_config(patch: Patch) -> None:
    Path(".dvc/config").write_text("[core\nanalytics = false")


def half_a_record(patch: Patch) -> None:
    Path(".dvc/tmp/rwlock").write_text('{"/data/arms": {"write": {"pid": 12, "cm')


def record_of_a_stranger(patch: Patch) -> None:
    """Whose process id is another process's by now."""
    record = {"write": {str(Path.cwd() / "data"): {"pid": os.getpid(), "cmd": "dvc repro"}}, "read": {}}
    Path(".dvc/tmp/rwlock").write_text(json.dumps(record))


def cache_is_a_file(patch: Patch) -> None:
    Path(".cache").rmdir()
    Path(".cache").touch()


def not_writable(patch: Patch) -> None:
    access = os.access
    patch.setattr(repository.os, "access", lambda path, mode: Path(path) != Path(".dvc") and access(path, mode))


def old_python(patch: Patch) -> None:
    patch.setattr(repository.platform, "python_version", lambda: "3.9.18")


def other_version(patch: Patch) -> None:
    path = Path("requirements.txt")
    path.write_text(re.sub(r"(?m)^numpy==.*$", "numpy==1.0.0", path.read_text()))


def package_not_installed(patch: Patch) -> None:
    with Path("requirements.txt").open("a") as file:
        file.write("nobody-has-this==1.0\nnor-this==1.0 ; platform_system == 'Plan 9'\n")


def cut_off_model(patch: Patch) -> None:
    path = own_copy("models/postcards/judge") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def pointer_instead_of_model(patch: Patch) -> None:
    path = own_copy("models/postcards/judge") / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3886892\n")


def weights_gone(patch: Patch) -> None:
    (own_copy("models/postcards/judge") / "model.safetensors").unlink()


def half_a_config(patch: Patch) -> None:
    path = own_copy("models/postcards/mllm") / "config.json"
    path.write_text(path.read_text()[:50])


def model_gone(patch: Patch) -> None:
    Path("models/postcards/sd").unlink()


def damaged_ledger(patch: Patch) -> None:
    Path(".cache/ledger.sqlite").write_bytes(b"no database" * 1000)


def damaged_runs(patch: Patch) -> None:
    Path("mlflow.db").write_bytes(b"no database" * 1000)


def slow_clock(patch: Patch) -> None:
    os.utime("dvc.yaml", (2**32, 2**32))


def cuda_without_a_gpu(patch: Patch) -> None:
    patch.setattr(machine.Path, "exists", lambda path: str(path)[:5] != "/dev/" and os.path.exists(path))
    change(model__device="cuda")


def mps_without_a_mac(patch: Patch) -> None:
    patch.setattr(machine.platform, "system", lambda: "Linux")
    change(mllms__postcards__device="mps")


def torch_without_cuda(patch: Patch) -> None:
    program_called("nvidia-smi", f"echo '{A100}'")
    patch.setattr(machine, "torch_here", lambda: Torch("2.14.1+cpu", None, False))
    change(model__device="cuda")


def old_driver(patch: Patch) -> None:
    program_called("nvidia-smi", f"echo '{A100}'")
    patch.setattr(machine, "torch_here", lambda: Torch("2.14.1", "13.0", False, "driver too old (found version 12040)"))


def broken_driver(patch: Patch) -> None:
    program_called("nvidia-smi", "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")


def hidden_gpu(patch: Patch) -> None:
    program_called("nvidia-smi", f"echo '{A100}'")
    patch.setenv("CUDA_VISIBLE_DEVICES", "")


def small_gpu(patch: Patch) -> None:
    program_called("nvidia-smi", "echo 'NVIDIA GeForce GT 710, 1024, 1000, 470.256.02'")
    patch.setattr(machine, "torch_here", lambda: Torch("2.14.1", "13.0", True))


def no_key(patch: Patch) -> None:
    change(stage1__mllm="gpt4")
    patch.setattr(reach, "answer", lambda address: (b"", ""))


def closed_server(patch: Patch) -> None:
    change(mllms__cogvlm__base_url=f"http://127.0.0.1:{closed_port()}/v1", stage1__mllm="cogvlm")


def dead_proxy(patch: Patch) -> None:
    serve_by(80, base_url="http://models.invalid/v1")
    patch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{closed_port()}")


def no_hub(patch: Patch) -> None:
    from huggingface_hub import constants

    patch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    change(evaluate__clip_score="nobody/has-this-clip")


def no_data(patch: Patch) -> None:
    change(data__source="folder", data__path="nowhere")


def closed_mirror(patch: Patch) -> None:
    change(data__source="coco", data__fetch="images", data__train_split="train2017", data__val_split="val2017")
    change(data__mirror=f"http://127.0.0.1:{closed_port()}")


Plant = Callable[[Patch], None]
STOPPING: dict[Plant, str] = {  # what the quick part stops a run for
    full_disk: r"16 MiB are free .* -> free some: make clean",
    unknown_key: r"model\.stepps: unknown key.* -> correct it; git diff params\.yaml shows",
    conflict: r"params\.yaml:\d+ has the conflict markers .* -> settle it, or git checkout --ours params\.yaml",
    half_a_lock_file: r"dvc\.lock is not YAML.* -> git checkout dvc\.lock",
    half_a_stage: r"dvc\.lock is damaged.* -> git checkout dvc\.lock",
    no_pipeline: r"dvc\.yaml is missing.* -> .*git checkout dvc\.yaml",
    no_git: r"git is not installed.* -> install git",
    no_clone: r"in no git repository -> git clone",
    no_dvc: r"no command dvc -> make setup",
    broken_dvc_config: r"DVC's configuration cannot be read.* -> .*git checkout \.dvc/config",
    record_of_a_stranger: r"rwlock says that process \d+ .* -> if that is so: rm .*rwlock",
    cache_is_a_file: r"\.cache is a file.* -> mv ",
    not_writable: r"\.dvc cannot be written -> sudo chown",
    cut_off_model: r"mllms\.postcards-judge\.model: .* is cut off: 3,885,892 bytes of 3,886,892 -> git",
    pointer_instead_of_model: r"model\.safetensors is a pointer of git-lfs.* -> git checkout models/postcards/judge",
    weights_gone: r"models/postcards/judge holds no \*\.safetensors -> git checkout",
    half_a_config: r"mllm/config\.json is damaged -> git checkout models/postcards/mllm",
    model_gone: r"model\.name: models/postcards/sd is not here -> git checkout models/postcards/sd",
}
TOLD: dict[Plant, str] = {  # problems that the quick part tells
    little_memory: r"1\.0 GB of memory.* fine-tuning take 2\.0 GB -> smaller models",
    cuda_without_a_gpu: r"model\.device is cuda.* -> set it to auto",
    mps_without_a_mac: r"mllms\.postcards\.device is mps.* -> set it to auto",
    no_key: r"mllms\.gpt4: .*OPENAI_API_KEY is not set -> export OPENAI_API_KEY=",
}
SLOW: dict[Plant, str] = {  # problems that only the whole finds
    old_python: r"Python 3\.9\.18 is not supported .* -> rm -r \.venv",
    package_not_installed: r"package nobody-has-this is not installed -> touch requirements\.txt; make setup",
    damaged_ledger: r"ledger\.sqlite: file is not a database -> docs/how-it-works\.md",
    torch_without_cuda: r"A100.*, 86 GB, driver 550\.54\.15; torch 2\.14\.1\+cpu is a build for processors alone -> ",
    small_gpu: r"GT 710.* fine-tuning take 2\.0 GB.* -> smaller models",
    closed_server: r"mllms\.cogvlm: nobody answers at http://127\.0\.0\.1:\d+/v1\. Start a server",
    dead_proxy: r"nobody answers at http://models\.invalid/v1 through the proxy http://127\.0\.0\.1:\d+",
    no_hub: r"the hub cannot be reached: nobody/has-this-clip -> .*hf download nobody/has-this-clip",
    no_data: r"nowhere",
}
WARNED: dict[Plant, str] = {
    memory_in_use: r"0\.5 free; .* take 2\.0 GB -> end other programs",
    killed_git: r"index\.lock is there.* -> when no git command runs: rm ",
    half_a_record: r"rwlock was left half-written.* -> make repro removes it",
    slow_clock: r"clock says 20\d\d-\d\d-\d\d.* -> set the clock",
    other_version: r"numpy [\d.]+, not ==1\.0\.0 -> touch requirements\.txt",
    damaged_runs: r"MLflow's .*mlflow\.db: file is not a database.* -> mv ",
    old_driver: r"cannot compute on it \(driver too old .* -> a driver for CUDA 13\.0",
    broken_driver: r"driver does not work: .*version mismatch -> restart",
    hidden_gpu: r"CUDA_VISIBLE_DEVICES hides the GPU -> unset",
    closed_mirror: r"data\.mirror: nobody answers .* -> another mirror",
}
PROBLEMS = STOPPING | TOLD | SLOW


def name_of(plant: object) -> str:
    return getattr(plant, "__name__", "")


def test_a_place_in_order_has_no_problem(place: Path, capsys: pytest.CaptureFixture) -> None:
    assert bad() == []
    assert bad(quick=True) == []
    sys.argv[1:] = ["--quick"]
    program.main()
    assert capsys.readouterr() == ("", "")


def test_dvc_may_work_without_git_and_without_a_lock_file(place: Path) -> None:
    shutil.rmtree(".git")
    Path(".dvc/config").write_text("[core]\n    no_scm = true\n")
    Path("dvc.lock").write_text("schema: '2.0'\n")
    assert bad(quick=True) == []
    Path("dvc.lock").unlink()
    assert bad(quick=True) == []


def test_a_process_that_has_ended_holds_no_lock(place: Path) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    record = {"write": {str(place / "data"): {"pid": ended.pid, "cmd": "dvc repro"}}, "read": {}}
    Path(".dvc/tmp/rwlock").write_text(json.dumps(record))
    assert [one.verdict for one in repository.locks()] == ["ok"]


def test_dvc_at_work_here_is_told(place: Path) -> None:
    Path("../bin/dvc").write_text("import time\nprint('here', flush=True)\ntime.sleep(60)")
    with subprocess.Popen([sys.executable, "../bin/dvc"], stdout=subprocess.PIPE) as working:
        assert working.stdout is not None
        working.stdout.readline()
        told = repository.locks()
        half_a_record(pytest.MonkeyPatch())
        damaged = repository.locks()
        working.kill()
    assert [one.verdict for one in told] == ["warning"] and f"process {working.pid}" in told[0].what
    assert [one.verdict for one in damaged] == ["problem"] and "wait" in damaged[0].remedy


@pytest.mark.parametrize("plant", PROBLEMS, ids=name_of)
def test_a_planted_problem_is_found(plant: Plant, place: Path, monkeypatch: Patch) -> None:
    with monkeypatch.context() as patch:
        plant(patch)
        found, quickly = looked(), looked(quick=True)
    problems = [str(one) for one in found if one.verdict == "problem"]
    assert [one for one in problems if re.search(PROBLEMS[plant], one)], found
    assert any(one.verdict == "problem" for one in quickly) == (plant in STOPPING)
    told = [one for one in quickly if re.search(PROBLEMS[plant], str(one)) and one.verdict != "ok"]
    assert bool(told) == (plant in STOPPING | TOLD)


@pytest.mark.parametrize("plant", WARNED, ids=name_of)
def test_what_stops_no_run_is_a_warning(plant: Plant, place: Path, monkeypatch: Patch) -> None:
    with monkeypatch.context() as patch:
        plant(patch)
        found = looked()
    assert [one for one in found if one.verdict == "problem"] == []
    assert [one for one in found if one.verdict == "warning" and re.search(WARNED[plant], str(one))], found


def test_many_problems_at_once_are_all_found(place: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture) -> None:
    together = [
        *(full_disk, little_memory, half_a_stage, broken_dvc_config, not_writable, record_of_a_stranger),
        *(old_python, package_not_installed, half_a_config, damaged_ledger, closed_server, cut_off_model, no_hub),
    ]
    sys.argv[1:] = []
    with monkeypatch.context() as patch:
        for plant in together:
            plant(patch)
        with pytest.raises(SystemExit) as ended:
            program.main()
    printed = capsys.readouterr().out.splitlines()
    assert ended.value.code == 1
    missed = [name_of(one) for one in together if not any(re.search(PROBLEMS[one], line) for line in printed)]
    assert missed == []
    assert len(together) >= 10 and printed[-1].startswith("problems: ")


def test_quick_stops_with_status_1_and_one_line_on_stderr(place: Path, capsys: pytest.CaptureFixture) -> None:
    half_a_stage(pytest.MonkeyPatch())
    sys.argv[1:] = ["--quick"]
    with pytest.raises(SystemExit):
        program.main()
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(r"doctor: problem +dvc\.lock is damaged.* -> git checkout dvc\.lock\n", err)


def test_the_quick_part_loads_nothing_heavy(place: Path) -> None:
    told = "import sys; from t2i_feedback.tools.doctor.__main__ import main; main(); print(*sys.modules)"
    outside = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}
    ran = subprocess.run([sys.executable, "-c", told, "--quick"], env=outside, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert {"torch", "transformers", "diffusers", "mlflow", "dvc", "openai"} & set(ran.stdout.split()) == set()


# ------------------------------------------------------------------------------------------- servers, keys


@contextmanager
def listing(*models: str, status: int = 200) -> Iterator[tuple[int, list[str]]]:
    """A server of a list of models: its port, and the keys that it was sent."""
    sent: list[str] = []

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sent.append(self.headers.get("Authorization", ""))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps({"data": [{"id": one} for one in models]}).encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, sent
        server.shutdown()


def test_a_server_with_the_model_is_well(place: Path) -> None:
    with listing("other", "small") as (port, _):
        serve_by(port)
        assert [one.verdict for one in reach.servers(params.load())] == ["ok"]


def test_a_server_with_another_model_is_told(place: Path) -> None:
    with listing("other") as (port, _):
        serve_by(port)
        (found,) = reach.servers(params.load())
    assert found.verdict == "warning" and "lists other, not small" in found.what and "correct" in found.remedy


def test_a_key_is_neither_sent_nor_shown(place: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-very-secret")
    with listing(status=401) as (port, sent):
        serve_by(port, api_key_env="SOME_KEY")
        assert [one.verdict for one in reach.servers(params.load())] == ["ok"]
        sys.argv[1:] = []
        program.main()
    assert sent == ["", ""]
    assert "secret" not in "".join(capsys.readouterr())


def test_nobody_is_asked_whom_the_parameters_do_not_use(place: Path, monkeypatch: Patch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(reach, "answer", lambda address: asked.append(address) or (b"", ""))
    monkeypatch.setattr(reach.needs, "hub_answers", lambda seconds: asked.append("the hub"))
    looked()
    assert asked == []


# ------------------------------------------------------------------------------------------- machine, fits


def test_what_a_model_takes_may_be_unknown(place: Path) -> None:
    serve_by(closed_port())
    found = [*machine.memory(params.load()), *machine.room(params.load()), fits.judged("", figures.read(), None)]
    assert [one.verdict for one in found] == ["ok", "ok", "no"]
    assert "not known" in found[0].what and "not known" in found[1].what and "mllms.served" in found[2].what


def test_a_locked_database_of_runs_is_told(place: Path) -> None:
    with sqlite3.connect("mlflow.db", isolation_level=None) as other:
        other.execute("CREATE TABLE runs (x)")
        other.execute("BEGIN EXCLUSIVE")
        (found,) = repository.databases()
        other.execute("ROLLBACK")
    assert found.verdict == "warning" and "locked" in found.what
    assert [one.verdict for one in repository.databases()] == ["ok"]


def test_the_drivers_list_is_read(place: Path) -> None:
    program_called("nvidia-smi", f"echo '{A100}'; echo 'NVIDIA GB10, [N/A], [N/A], 580.95'")
    found = machine.gpus()
    assert found[0] == Gpu("NVIDIA A100-SXM4-80GB", 81920 * 2**20 / 1e9, 81000 * 2**20 / 1e9, "550.54.15")
    assert found[1].gb == 0
    program_called("nvidia-smi", "echo 'No devices were found'; exit 6")
    with pytest.raises(UserError, match="No devices were found"):
        machine.gpus()


def test_memory_is_what_a_container_may_have(tmp_path: Path, monkeypatch: Patch) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("1000000000\n")
    monkeypatch.setattr(machine, "LIMITS", (str(limit),))
    assert machine.memory_gb()[0] == 1.0
    limit.write_text("max\n")
    assert machine.memory_gb()[0] > 1.0


def test_a_gpu_that_works_is_well(place: Path, monkeypatch: Patch) -> None:
    program_called("nvidia-smi", f"echo '{A100}'")
    monkeypatch.setattr(machine, "torch_here", lambda: Torch("2.14.1", "13.0", True))
    (found,) = machine.gpu(params.load())
    assert found.verdict == "ok" and "computes on it" in found.what


@pytest.mark.parametrize(
    ("name", "gb", "key"),
    [
        ("NVIDIA A100-SXM4-80GB", 85.9, "a100"),
        ("NVIDIA A100-PCIE-40GB", 42.9, "a100-40gb"),
        ("NVIDIA GeForce RTX 4090", 25.8, "rtx4090"),
        ("NVIDIA H200", 150.8, "NVIDIA H200"),
    ],
)
def test_a_gpu_is_known_by_its_name_and_memory(name: str, gb: float, key: str, place: Path) -> None:
    assert fits.called_by(Gpu(name, gb, gb, ""), figures.read()) == key


def test_every_profile_is_judged_by_the_estimate(place: Path, monkeypatch: Patch) -> None:
    disk(monkeypatch, 2**41)
    Path("profiles").symlink_to(REPOSITORY / "profiles")
    known = figures.read()
    found = {one.what.partition(":")[0]: one for one in fits.profiles()}
    assert set(found) == {"params.yaml as it is", *(one.stem for one in (REPOSITORY / "profiles").glob("*.yaml"))}
    assert found["params.yaml as it is"].verdict == "ok" and "min" in found["params.yaml as it is"].what
    assert found["paper"].verdict == "no" and "a GPU" in found["paper"].what and "38 GB" in found["paper"].what
    assert found["coco5k"].verdict == "no" and "the shipped models draw postcards, not coco" in found["coco5k"].what
    large, small = Gpu("NVIDIA A100-SXM4-80GB", 85.9, 85.9, ""), Gpu("NVIDIA GeForce RTX 4090", 25.8, 25.8, "")
    on_large = fits.judged("paper", known, large)
    hours = fits.costs.estimate(fits.profile.chosen("paper"), known, "a100", 1).hours
    assert on_large.verdict == "ok" and f"about {int(hours)} h" in on_large.what and on_large.what.endswith("on a100")
    assert "38 GB of memory, of 26" in fits.judged("paper", known, small).what
    unknown = fits.judged("paper", known, Gpu("NVIDIA H200", 150.8, 150.8, ""))
    assert unknown.verdict == "ok" and "no figure says" in unknown.what


def test_a_check_that_fails_stops_nothing(place: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(program, "CHECKS", [])

    def odd() -> list[Finding]:
        raise RuntimeError("an odd machine")

    odd.__module__ = machine.__name__
    check(quick="stops")(odd)
    monkeypatch.setattr(program, "CHECKS", [CHECKS.pop()])
    (found,) = looked()
    assert found.verdict == "warning" and "an odd machine" in found.what
