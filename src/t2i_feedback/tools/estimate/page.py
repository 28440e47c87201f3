"""An estimate as text: stage by stage, then the sums."""

from collections.abc import Callable, Iterator

from t2i_feedback.tools.estimate.costs import Estimate, launched
from t2i_feedback.tools.estimate.figures import FIGURES


def table(found: Estimate) -> str:
    """Stage by stage, then the sums."""
    lines = [f"{'stage':22}{'images':>10}{'transitions':>13}{'calls':>10}{'GPUs':>6}{'time':>10}  most of it"]
    for cost in found.stages:
        most = max(cost.seconds, key=lambda what: cost.seconds[what])
        used = found.gpus if launched(cost.stage) else 1
        lines.append(
            f"{cost.stage:22}{cost.images:10,.0f}{cost.transitions:13,.0f}{cost.calls:10,.0f}{used:6}"
            f"{_time(cost.wall):>10}  {most}"
        )
    return "\n".join([*lines, "", *_sums(found)])


def _sums(found: Estimate) -> Iterator[str]:
    yield f"from beginning to end   {_time(found.hours * 3600)} on {found.gpus} x {found.gpu}"
    if found.pace != 1:
        yield f"this machine            a core is {found.pace:.2f} times as fast now as one of the two of the figures"
    yield f"GPUs at work            {found.gpu_hours:,.1f} GPU hours"
    for who, count in found.calls.items():
        name = who.rpartition(" ")[2]
        yield f"calls                   {count:,.0f} {who} ({found.reached[name]})"
    yield f"dollars                 {found.gpu_usd:,.2f} for GPUs from beginning to end, {found.api_usd:,.2f} for calls"
    yield f"bottleneck              {found.bottleneck}"
    yield f"disk                    {found.disk_gb:,.1f} GB of images and MLLM weights"
    yield f"memory, fine-tuning     {found.memory_gb:,.1f} of {found.gpu_memory_gb:,.0f} GB of each GPU{_fits(found)}"
    yield f"figures and sources     {FIGURES}"


def _fits(found: Estimate) -> str:
    if found.memory_gb <= found.gpu_memory_gb:
        return ""
    return ": does not fit; quantise or serve the judges (docs/judges.md)"


def _time(seconds: float) -> str:
    units: list[tuple[float, str, Callable[[float], float]]] = [
        (100, "s", lambda s: s),
        (6000, "min", lambda s: s / 60),
        (float("inf"), "h", lambda s: s / 3600),
    ]
    return next(f"{scale(seconds):.1f} {unit}" for bound, unit, scale in units if seconds < bound)
