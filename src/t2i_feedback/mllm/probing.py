"""What a server can do, found out by a few questions: images, probabilities, schemas, answers that vary.

What rests on a parameter is probed for its effect, since many servers take parameters that they do not heed.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from PIL import Image

from t2i_feedback.foundation.errors import UserError
from t2i_feedback.mllm import completion, dialects, readings
from t2i_feedback.mllm.base import Abilities, Decoding, Request
from t2i_feedback.mllm.completion import CHOICE_TOKENS, Json
from t2i_feedback.mllm.readings import SCORES, YES_NO

if TYPE_CHECKING:
    from t2i_feedback.mllm.endpoint import EndpointMllm

PROBE = "Is grey a colour? Answer only yes or no."
PROBE_SIDE = 64  # pixels; some models take no smaller images
VARIETY = "Write any whole number between 1 and 1000000, and nothing else."
TIMES = 3  # VARIETY is asked


def abilities(server: "EndpointMllm") -> Abilities:
    """Two questions when the server takes images and gives logprobs; some more when it does not.

    What was found to be otherwise than the protocol has it is told in one line.
    """
    grey = Image.new("RGB", (PROBE_SIDE, PROBE_SIDE), (128, 128, 128)) if server.entry.images else None
    images, logprobs = False, False
    kinds: list[tuple[Image.Image | None, tuple[str, ...]]] = [(None, YES_NO), (None, ())]
    if grey:
        kinds = [(grey, YES_NO), (grey, ()), *kinds]
    for image, candidates in kinds:
        said = server.probe(Request(PROBE, image), Decoding(CHOICE_TOKENS, candidates))
        if isinstance(said, dict):
            images, logprobs = image is not None, _gives_probabilities(server, said)
            break
    else:
        raise UserError(
            f"mllms.{server.name}: {server.entry.base_url} is there, but answers no question for model "
            f"{server.entry.model}. It said: {said}"
        )
    if not logprobs:
        logprobs = _without_thinking(server, grey if images else None)
    schema = _holds_to_schema(server)
    if not logprobs and server.entry.reading in ("auto", "samples") and server.entry.times_asked > 1:
        steady = _is_steady(server)
        server.dialect = replace(server.dialect, steady=steady)
    found = server.dialect.words()
    if found:
        print(f"mllms.{server.name}: the server at {server.entry.base_url} has {'; '.join(found)}", flush=True)
    dialect = server.dialect
    return Abilities(images, logprobs, schema, dialect.changing(), not dialect.steady, server.thinks, dialect.to_json())


def _gives_probabilities(server: "EndpointMllm", said: Json) -> bool:
    if not completion.gives_logprobs(said):
        return False
    if completion.degenerate(said):
        server.dialect = replace(server.dialect, degenerate=True)
        return False
    return True


def _without_thinking(server: "EndpointMllm", image: Image.Image | None) -> bool:
    """Whether a model that refuses what thinking models refuse gives probabilities once it does not think."""
    before = server.dialect
    if server.entry.reasoning is not None or (before.temperature and before.logprobs):
        return False
    server.dialect = replace(before, effort="none", temperature=True, logprobs=dialects.TOP_LOGPROBS)
    said = server.probe(Request(PROBE, image), Decoding(CHOICE_TOKENS, YES_NO))
    if isinstance(said, dict) and server.dialect.effort and _gives_probabilities(server, said):
        return True
    server.dialect = before
    return False


def _holds_to_schema(server: "EndpointMllm") -> bool:
    """Whether its answer is the JSON that was asked for: some take a schema and do not heed it."""
    for candidates in (SCORES, YES_NO):  # a schema with bounds of numbers, and one without
        decoding = Decoding(server.entry.max_new_tokens, schema=readings.schema(candidates))
        said = server.probe(Request(PROBE), decoding)
        if not isinstance(said, dict) or server.dialect.schema == "none":
            return False
        reply = completion.read(said, Request(PROBE), decoding, 0.0, server.entry.max_new_tokens)
        if not readings.is_json(reply.text):
            return False
    return True


def _is_steady(server: "EndpointMllm") -> bool:
    """Whether it gives the same answer each time, at a temperature at which it should not, or takes none such."""
    texts = set()
    for sample in range(TIMES):
        request, decoding = Request(VARIETY, None, sample), Decoding(CHOICE_TOKENS, temperature=1.0)
        said = server.probe(request, decoding)
        if not isinstance(said, dict):
            return True
        texts.add(completion.read(said, request, decoding, 0.0, CHOICE_TOKENS).text)
    return len(texts) == 1
