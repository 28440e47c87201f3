"""What is installed is what the project asks for, on every platform."""

from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def lines(path: str) -> dict[str, Requirement]:
    stripped = (line.partition("#")[0].strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return {canonicalize_name(one.name): one for one in map(Requirement, filter(None, stripped))}


PINS = lines("requirements.txt")


def test_everything_asked_for_is_pinned_to_a_version_that_was_asked_for():
    for name, asked in lines("requirements.in").items():
        (pin,) = PINS[name].specifier
        assert pin.operator == "==" and pin.version in asked.specifier, name


def test_what_the_packages_need_is_pinned_too_but_for_what_torch_pins_itself():
    needed = set()
    for name in PINS:
        for one in map(Requirement, metadata.requires(name) or []):
            if one.marker is None or one.marker.evaluate({"extra": ""}):
                needed.add(canonicalize_name(one.name))
    missing = {name for name in needed - set(PINS) if not name.startswith(("nvidia-", "cuda-"))}
    assert missing <= {"triton"}


def test_no_pin_is_for_one_kind_of_processor_or_for_a_gpu():
    machines = [name for name, pin in PINS.items() if "x86_64" in str(pin.marker) and "aarch64" not in str(pin.marker)]
    assert machines == [] and not any(name.startswith(("nvidia-", "cuda-", "triton")) for name in PINS)
