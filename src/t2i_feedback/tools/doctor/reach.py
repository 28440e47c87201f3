"""Checks of what a run asks elsewhere: keys, servers, the model hub, the data set. Only what the parameters name."""

import json
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from t2i_feedback import needs
from t2i_feedback.datasets import sources
from t2i_feedback.foundation import paths
from t2i_feedback.mllm import addresses
from t2i_feedback.mllm.backends.endpoint import EndpointEntry
from t2i_feedback.params import Params, is_of_hub
from t2i_feedback.tools.doctor.checks import Findings, check, ok, problem, warning

SECONDS = 2.0  # to wait for an answer


def answer(address: str) -> tuple[bytes | None, str]:
    """What an address says, None where nobody is; and why. No key is sent."""
    proxy = addresses.proxy(address)
    through = urllib.request.ProxyHandler({urlsplit(address).scheme: proxy} if proxy else {})
    try:
        with urllib.request.build_opener(through).open(address, timeout=SECONDS) as reply:
            return reply.read(2**20), ""
    except urllib.error.HTTPError as error:
        return b"", str(error)  # it is there, whatever it thinks of the question
    except (OSError, ValueError) as error:
        return None, str(getattr(error, "reason", error))


@check(quick="tells")
def keys(p: Params) -> Findings:
    found: Findings = []
    for name, variable in needs.keys_not_set(p).items():
        found += problem(f"mllms.{name}: the environment variable {variable} is not set", f"export {variable}=…")
    return found or ok("every key that is needed is set")


@check()
def servers(p: Params) -> Findings:
    found: Findings = []
    for name, entry in needs.used(p).items():
        if not isinstance(entry, EndpointEntry):
            continue
        proxy = addresses.proxy(entry.base_url)
        said, why = answer(f"{entry.base_url.rstrip('/')}/models")
        if said is None and proxy.startswith("socks"):
            found += warning(f"mllms.{name}: whether {entry.base_url} answers through SOCKS is not looked at", "")
        elif said is None:
            found += problem(f"mllms.{name}: {addresses.nobody(entry, proxy, why)}", "")
        elif (served := _models(said)) and entry.model not in served:
            what = f"mllms.{name}: {entry.base_url} lists {', '.join(served[:3])}, not {entry.model}"
            found += warning(what, f"start the other model, or correct mllms.{name}.model")
        else:
            found += ok(f"mllms.{name}: {entry.base_url} answers")
    return found or ok("no server is asked")


def _models(said: bytes) -> list[str]:
    """That a server lists; none where it has no list, or wants a key for it."""
    try:
        return [str(one["id"]) for one in json.loads(said)["data"]]
    except (ValueError, KeyError, TypeError):
        return []


@check()
def hub(p: Params) -> Findings:
    if not any(map(is_of_hub, needs.checkpoints(p).values())):
        return ok("no model is to be fetched from the hub")
    what, remedy = needs.unreachable(p, seconds=SECONDS)
    if what:
        return problem(what, remedy)
    return ok(f"to be fetched from the hub: {', '.join(needs.to_be_fetched(p)) or 'nothing'}")


@check()
def data(p: Params) -> Findings:
    sources.foresee(p.data, paths.root())
    if p.data.source == "coco" and p.data.fetch != "none" and answer(p.data.mirror)[0] is None:
        return warning(f"data.mirror: nobody answers at {p.data.mirror}", "another mirror, or a copy in data.downloads")
    return ok(f"data set: {p.data.source}")
