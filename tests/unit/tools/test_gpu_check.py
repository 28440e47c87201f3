"""What is to be shown on a GPU, shown in tiny on the CPU; and what is made of figures that only a GPU has."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import diffusers
import psutil
import pytest
import torch
import warm
import yaml

from t2i_feedback.image_models.loading import load_image_model
from t2i_feedback.tools.estimate import figures
from t2i_feedback.tools.gpu_check import corrections, images, mllms, page, parts, working, yaml_lines
from t2i_feedback.tools.gpu_check.images import Bench
from t2i_feedback.tools.gpu_check.results import RESULTS, Attempt, Phases, Result, attempts, read

pytestmark = pytest.mark.slow  # needs other processes, and imports all that the trainer does

REPOSITORY = Path(__file__).parents[3]
PHASES = {"load", "texts", "rollout", "decoding", "replay", "update", "drawing", "offload", "compile"}
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
CARD = {
    "name": "NVIDIA A100-SXM4-80GB",
    "memory_gb": 85.1,
    "capability": "8.0",
    "count": 1.0,
    "torch": "2",
    "cuda": "13",
}


def workplace(folder: Path) -> Path:
    """Where the program finds what it reads, and writes beside it."""
    for name in ("params.yaml", "profiles", "models"):
        (folder / name).symlink_to(REPOSITORY / name)
    (folder / "estimates").mkdir()
    (folder / figures.FIGURES).write_bytes((REPOSITORY / figures.FIGURES).read_bytes())
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workplace(tmp_path))
    return tmp_path


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["python", "-m", "t2i_feedback.tools.gpu_check", *arguments]
    return subprocess.run(command, cwd=folder, env=warm.environment(environment()), capture_output=True, text=True)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(REPOSITORY / "src"), "CUDA_VISIBLE_DEVICES": ""}


# ------------------------------------------------------------------------------------------------ in tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, Attempt]]:
    """All parts on the CPU: the folder, what was printed, what was found."""
    folder = workplace(tmp_path_factory.mktemp("gpu-check"))
    ended = call(folder, "--device", "cpu")
    assert ended.returncode == 0, ended.stderr
    return folder, ended.stdout, attempts(read(folder / RESULTS), "cpu")


def test_every_part_runs_to_its_end_without_a_problem(whole: tuple[Path, str, dict[str, Attempt]]) -> None:
    assert {name: one.state for name, one in whole[2].items()} == dict.fromkeys(parts.tasks(list(parts.PARTS)), "done")


@pytest.mark.parametrize("task", [task for name in ("sd15", "sdxl", "sd35") for task in parts.PARTS[name]])
def test_every_phase_of_an_image_model_is_measured(whole: tuple[Path, str, dict[str, Attempt]], task: str) -> None:
    found = whole[2][task]
    assert found.phases.keys() >= PHASES
    assert all(found.figure(phase, "seconds") for phase in PHASES)
    assert found.figure("update", "moved") and found.figure("update", "grad_norm")


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd35"])
def test_what_rests_in_main_memory_draws_the_same(whole: tuple[Path, str, dict[str, Attempt]], name: str) -> None:
    assert whole[2][f"{name} float16"].figure("offload", "grey_levels_apart") == 0


def test_a_replay_in_half_precision_is_told_step_by_step(whole: tuple[Path, str, dict[str, Attempt]]) -> None:
    replay = whole[2]["sd35 float16"].phases["replay"].figures
    assert {"off_at_step_1", "off_at_step_2", "sigma_of_step_1", "sigma_of_step_2", "least_clip_range"} <= replay.keys()


def test_a_llava_answers_in_batches_with_finite_numbers(whole: tuple[Path, str, dict[str, Attempt]]) -> None:
    asked = whole[2]["llava"]
    assert asked.figure("questions", "all_finite") == 1
    assert asked.figure("questions", "tokens_in") > 576  # those of the image, and words
    assert asked.phases["questions"].figures["apart_from_alone"] < 0.1
    assert asked.figure("texts", "tokens_per_second")


def test_what_travels_between_two_processes_arrives_as_it_is(whole: tuple[Path, str, dict[str, Attempt]]) -> None:
    found = whole[2]["nccl"].phases["exchange"].figures
    assert (found["broadcast_is_equal"], found["sum_is_equal"], found["processes"]) == (True, True, 2.0)


def test_what_is_done_is_not_done_again(whole: tuple[Path, str, dict[str, Attempt]]) -> None:
    before = (whole[0] / RESULTS).read_bytes()
    again = call(whole[0], "--device", "cpu", "llava", "nccl")
    assert "llava: done before" in again.stdout and "nccl: done before" in again.stdout
    assert (whole[0] / RESULTS).read_bytes() == before


def test_figures_of_the_cpu_correct_nothing(whole: tuple[Path, str, dict[str, Attempt]]) -> None:
    assert [one for found in whole[2].values() for one in found.corrections] == []
    assert "to paste" not in whole[1]


def test_the_page_has_every_part_and_needs_nothing_but_itself(whole: tuple[Path, str, dict[str, Attempt]]) -> None:
    text = (whole[0] / "gpu-check/report.html").read_text()
    assert all(f"<h2>{task}</h2>" in text for task in whole[2])
    assert "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0" in text
    assert "default-src 'none'" in text.replace("&#39;", "'")
    assert "src=" not in text.replace("default-src=", "") and "<link" not in text and "<script" not in text


# ------------------------------------------------------------------------------------------------ at real size


@pytest.mark.parametrize("dtype", parts.DTYPES)
@pytest.mark.parametrize(("name", "side"), [("sd15", 64), ("sdxl", 128), ("sd35", 64)])
def test_at_its_real_size_a_model_is_loaded_encodes_and_predicts(
    here: Path, monkeypatch: pytest.MonkeyPatch, name: str, side: int, dtype: str
) -> None:
    """On the meta device, which has sizes and no numbers."""
    monkeypatch.setattr(diffusers.DiffusionPipeline, "to", lambda pipe, device: pipe)
    setup = Bench(name, dtype, "cuda").setup
    with images.checkpoint(setup, "meta") as folder:
        model = load_image_model(setup.changed("model", name=str(folder), device="cpu").p.model, training=True)
    latents = torch.zeros(2, *model.latent_shape(), dtype=model.dtype, device="meta")
    predicted = model.denoise(latents, torch.ones(2, device="meta"), model.encode(["a red house"]).expand(2))
    assert predicted.shape == latents.shape and predicted.shape[-2:] == (side, side)
    assert predicted.dtype == getattr(torch, dtype)


def test_the_llava_has_as_many_numbers_as_the_published_one() -> None:
    """As transformers counts llava-hf/llava-1.5-7b-hf when it has loaded it."""
    with torch.device("meta"):
        made = mllms.LlavaForConditionalGeneration(mllms.llava(tiny=False))
    assert sum(weight.numel() for weight in made.parameters()) == 7_063_427_072


# ------------------------------------------------------------------------------------------------ what goes wrong


def test_a_wrong_part_is_one_line_that_names_the_parts(here: Path) -> None:
    ended = call(here, "sd16")
    assert ended.returncode == 1
    assert ended.stderr == "gpu_check: PARTS: no part is called sd16; there are sd15, sdxl, sd35, llava, nccl\n"


@pytest.mark.parametrize(("device", "words"), [("tpu", "there are auto, cuda, cpu"), ("cuda", "is not available")])
def test_a_wrong_device_is_one_line(here: Path, device: str, words: str) -> None:
    ended = call(here, "--device", device)
    assert ended.returncode == 1 and ended.stdout == ""
    assert ended.stderr.startswith("gpu_check: DEVICE: ") and words in ended.stderr and ended.stderr.count("\n") == 1


def test_a_part_that_is_killed_is_named_and_is_not_done(here: Path) -> None:
    command = [sys.executable, "-m", "t2i_feedback.tools.gpu_check", "--device", "cpu", "llava"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as started:
        os.kill(worker_of(started.pid), signal.SIGKILL)
        printed, _ = started.communicate()
    assert started.returncode == 0
    assert "llava: was killed midway by SIGKILL" in printed
    assert not attempts(read(), "cpu")["llava"].done


def worker_of(pid: int) -> int:
    """The process of a part, which has a session of its own."""
    while True:
        for child in psutil.Process(pid).children(recursive=True):
            if child.pid == os.getsid(child.pid):
                return child.pid
        time.sleep(0.02)


def test_a_part_that_takes_too_long_is_ended_and_named(here: Path) -> None:
    too_late = "import time; from t2i_feedback.tools.gpu_check import parts; parts.run('nccl', 'cpu', time.monotonic())"
    subprocess.run([sys.executable, "-c", too_late], env=environment(), check=True)
    found = attempts(read(), "cpu")["nccl"]
    assert found.state == "was killed midway: it was not done in the 0 seconds that were left"
    assert not found.done and not found.phases


def test_a_part_whose_end_nobody_saw_was_killed_midway() -> None:
    begun, ended = (Result(task="llava", device="cpu", phase=phase) for phase in ("begun", "ended"))
    load = Result(task="llava", device="cpu", phase="load", figures={"seconds": 1.0})
    assert attempts([begun, load], "cpu")["llava"].state == "was killed midway"
    assert attempts([begun, load, begun, ended], "cpu")["llava"].phases == {}
    assert attempts([begun, load, begun, ended], "cpu")["llava"].done
    assert attempts([begun, ended], "cuda") == {}


def test_what_does_not_fit_will_not_fit_later_and_what_failed_may_be_mended() -> None:
    begun, ended = (Result(task="sd35 float16", device="cuda", phase=phase) for phase in ("begun", "ended"))
    for problem, done in (("does not fit into the 8.5 GB", True), ("RuntimeError: no kernel", False)):
        row = Result(task="sd35 float16", device="cuda", phase="update", problem=problem)
        found = attempts([begun, row, ended], "cuda")["sd35 float16"]
        assert (found.done, found.state) == (done, f"update: {problem}")


def test_a_stretch_that_fails_is_told_and_the_next_one_runs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> Phases:
        yield "reckoned", {"update": 30.0}
        raise torch.OutOfMemoryError("CUDA out of memory")

    def runs() -> Phases:
        yield "drawing", {"seconds": 1.0}

    monkeypatch.setattr(working, "apart", lambda: None)
    monkeypatch.setattr(working, "card", lambda: CARD | {"memory_gb": 24.0})
    monkeypatch.setattr(working, "stretches", lambda task, device: {"fine_tuning": fails, "drawing": runs})
    working.work("sd35 float16", "cpu")
    found = attempts(read(), "cpu")["sd35 float16"]
    assert found.problems == [
        "fine_tuning after reckoned: does not fit into the 24.0 GB of this card; it lacks 7.0 GB: 30.0 are reckoned, "
        "and 1 for CUDA"
    ]
    assert found.figure("drawing", "seconds") == 1.0


def test_of_memory_that_was_asked_for_what_was_free_is_not_lacking() -> None:
    said = (
        "CUDA out of memory. Tried to allocate 3.00 GiB. GPU 0 has a total capacity of 23.65 GiB of which 1.00 GiB is "
        "free. Process 7 has 22.00 GiB memory in use."
    )
    assert "lacks at least 2.15 GB" in working.lacking(torch.OutOfMemoryError(said), 24.0, 12.0)
    assert "lacks memory: CUDA is full" in working.lacking(torch.OutOfMemoryError("CUDA is full"), 24.0, None)


# ------------------------------------------------------------------------------------------------ throughputs.yaml


def measured(task: str, **phases: dict[str, float]) -> Attempt:
    rows = [Result(task=task, device="cuda", phase="card", figures=CARD)]
    rows += [Result(task=task, device="cuda", phase=phase, figures=figures) for phase, figures in phases.items()]
    return Attempt(task, {row.phase: row for row in rows})


@pytest.fixture
def sdxl() -> Attempt:
    return measured(
        "sdxl float16",
        reckoned={"texts": 7.0, "drawing": 6.0, "decoding": 8.0, "update": 10.0},
        rollout={"steps_per_second": 12.345, "peak_gb": 8.8},
        update={"forwards_per_transition": 3.5, "peak_gb": 10.5},
        profile={"reckoned_gb": 9.0},
    )


def test_a_model_corrects_its_steps_update_and_memory(here: Path, sdxl: Attempt) -> None:
    found = {line.key[2:]: line for line in corrections.corrections(sdxl, "a100", "NVIDIA A100")}
    assert found[("steps", "a100")].value == 12.345  # its profile has the size that throughputs.yaml has
    assert found[("update",)].value == 2.5  # of which one is checkpointing's
    assert found[("memory",)].value == pytest.approx(9.0 * 1.1 + 1)  # the rollout's peak is decoding's
    assert {line.source.partition(";")[0] for line in found.values()} == {"measured: make gpu-check"}


def test_another_precision_than_the_profiles_corrects_nothing(here: Path) -> None:
    brain = measured("sdxl bfloat16", rollout={"steps_per_second": 12.0, "peak_gb": 8.8})
    assert list(corrections.corrections(brain, "a100", "NVIDIA A100")) == []


def test_the_file_with_corrections_is_the_file_but_for_them(here: Path, sdxl: Attempt) -> None:
    llava = measured("llava", questions={"questions_per_second": 9.5}, texts={"texts_per_second": 2.5})
    lines = [line for one in (sdxl, llava) for line in corrections.corrections(one, "h200", "NVIDIA H200")]
    before, after = (text.splitlines() for text in (figures.FIGURES.read_text(), yaml_lines.written(lines)))
    gone = [line for line in before if line not in after]
    assert [line.split()[:3] for line in gone] == [["memory:", "{value:", "10.8,"]]
    assert len(after) == len(before) + 5  # steps of that card, and questions and texts with a line above each
    figures.FIGURES.write_text("\n".join(after) + "\n")
    mllm, model = figures.read().mllms["llava15-7b"], figures.read().image_models[SDXL]
    assert (mllm.questions["h200"].value, mllm.texts["h200"].value) == (9.5, 2.5)
    assert (model.steps["h200"].value, model.steps["a100"].value, model.update.value) == (12.3, 8.43, 2.5)


def test_lines_to_paste_have_the_keys_of_the_file(here: Path, sdxl: Attempt) -> None:
    lines = list(corrections.corrections(sdxl, "a100", "NVIDIA A100"))
    pasted = yaml.safe_load(yaml_lines.as_yaml(lines))["image_models"][SDXL]
    assert pasted["steps"]["a100"]["value"] == 12.3
    assert figures.Figure.model_validate(pasted["update"]).unit == "forwards per trained transition"


@pytest.mark.parametrize(
    ("card", "memory", "key"),
    [
        ("NVIDIA A100-SXM4-80GB", 85.1, "a100"),
        ("NVIDIA A100-PCIE-40GB", 42.4, "a100-40gb"),
        ("NVIDIA GeForce RTX 4090", 25.3, "rtx4090"),
        ("NVIDIA H200", 150.1, "h200"),
    ],
)
def test_a_card_is_called_as_throughputs_yaml_calls_it(here: Path, card: str, memory: float, key: str) -> None:
    assert corrections.key_of(card, memory) == key


def test_what_make_estimate_goes_by_stands_beside_what_was_measured(here: Path) -> None:
    assert corrections.estimated("sdxl float16", "a100") == pytest.approx(8.43)
    assert corrections.estimated("sdxl float16", "h200") is None
    reading, writing = (
        676 * 2 * 7 / (312e3 * 0.5),
        7 * 2 / (2039 * 0.5) / 8,
    )  # docs of the figures: 676 tokens, one of 8
    assert corrections.estimated("llava", "a100") == pytest.approx(1 / (reading + writing))


def test_the_page_escapes_what_it_is_told(here: Path) -> None:
    rows = {"llava": Attempt("llava", {"load": Result(task="llava", device="cuda", phase="load", problem="<b>&</b>")})}
    text = page.write(rows, "cuda").read_text()
    assert "&lt;b&gt;&amp;&lt;/b&gt;" in text and "<b>" not in text


# ------------------------------------------------------------------------------------------------ on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("task", ["sd15 float16", "sd15 bfloat16"])
def test_a_model_of_real_size_learns_on_a_gpu_in_about_the_memory_that_is_reckoned(here: Path, task: str) -> None:
    bench = Bench.of(task, "cuda")
    phases = dict(bench.reckoned()) | dict(bench.fine_tuning()) | dict(bench.drawing())
    assert float(phases["update"]["peak_gb"]) == pytest.approx(float(phases["reckoned"]["update"]), rel=0.1)
    assert phases["update"]["moved"]
    assert float(phases["offload"]["grey_levels_apart"]) <= 1
    assert float(phases["offload"]["peak_gb"]) < float(phases["drawing"]["peak_gb"])


@pytest.mark.gpu
def test_tensors_travel_between_two_cards(here: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one card")
    found = dict(working.stretches("nccl", "cuda")["nccl"]())["exchange"]
    assert found["broadcast_is_equal"] and found["sum_is_equal"]
