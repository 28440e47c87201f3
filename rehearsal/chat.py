"""An OpenAI-compatible server around one small checkpoint, in the place of GPT-4's and CogVLM's.

It is written against transformers, not against this project's own way to ask a model, so that the two can be compared.
"""

import base64
import io
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

KEY = "rehearsal"  # what the server wants as a key, where it wants one


@dataclass(frozen=True)
class Kind:
    """What a served model is like."""

    logprobs: bool
    wants_key: bool


SERVED = {
    "gpt-5.6-terra": Kind(logprobs=True, wants_key=True),
    "cogvlm-chat": Kind(logprobs=False, wants_key=False),  # so its verdicts are read from answers asked several times
}


class Checkpoint:
    """Answers one request at a time."""

    def __init__(self, folder: Path):
        self._processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        self._model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        self._model.eval()
        self._lock = threading.Lock()

    @torch.inference_mode()
    def complete(self, body: dict[str, Any], logprobs: bool) -> dict[str, Any]:
        """A chat completion, by the protocol's names."""
        messages, images = _opened(body["messages"])
        tokenizer = self._processor.tokenizer
        prompt = self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        inputs = self._processor(images=images or None, text=prompt, return_tensors="pt")
        drawn = float(body.get("temperature", 1)) > 0
        limit = int(body.get("max_tokens", 64))
        with self._lock:
            torch.manual_seed(int(body.get("seed") or 0))
            sampling = {"do_sample": True, "temperature": float(body["temperature"])} if drawn else {"do_sample": False}
            made = self._model.generate(
                **inputs, max_new_tokens=limit, output_logits=True, return_dict_in_generate=True, **sampling
            )
        asked = inputs["input_ids"].shape[1]
        tokens = made.sequences[0, asked:].tolist()
        ended = tokens[-1] == tokenizer.eos_token_id
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": "stop" if ended else "length",
            "message": {
                "role": "assistant",
                "content": tokenizer.decode(tokens, skip_special_tokens=True),
                "refusal": None,
            },
            "logprobs": None,
        }
        if logprobs and body.get("logprobs"):
            rows = [scores[0].float().log_softmax(-1) for scores in made.logits]
            count = int(body.get("top_logprobs", 0))
            choice["logprobs"] = {
                "content": [self._alternatives(row, token, count) for row, token in zip(rows, tokens, strict=True)],
                "refusal": None,
            }
        usage = {"prompt_tokens": asked, "completion_tokens": len(tokens), "total_tokens": asked + len(tokens)}
        return {
            "id": "rehearsal",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [choice],
            "usage": usage,
        }

    def _alternatives(self, row: torch.Tensor, token: int, count: int) -> dict[str, Any]:
        """A written token with its log-probability and those of the likeliest."""

        def named(one: int) -> dict[str, Any]:
            return {"token": self._processor.tokenizer.decode([one]), "logprob": float(row[one]), "bytes": None}

        return named(token) | {"top_logprobs": [named(one) for one in row.topk(count).indices.tolist()]}


def _opened(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Image.Image]]:
    """The messages as chat templates take them, and their pictures."""
    images, turned = [], []
    for message in messages:
        parts = message["content"]
        content = []
        for part in [{"type": "text", "text": parts}] if isinstance(parts, str) else parts:
            if part["type"] == "image_url":
                data = part["image_url"]["url"].partition("base64,")[2]
                images.append(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
                content.append({"type": "image"})
            else:
                content.append(part)
        turned.append({"role": message["role"], "content": content})
    return turned, images


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.checkpoint = Checkpoint(folder)
        self.asked: Counter[str] = Counter()  # by model

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = SERVED.get(body.get("model", ""))
        if self.path != "/v1/chat/completions" or kind is None:
            self._answer(404, {"error": {"message": f"no model {body.get('model')!r} here", "code": "not_found"}})
        elif kind.wants_key and self.headers.get("Authorization") != f"Bearer {KEY}":
            self._answer(401, {"error": {"message": "a wrong key", "code": "invalid_api_key"}})
        else:
            self.server.asked[body["model"]] += 1
            self._answer(200, self.server.checkpoint.complete(body, kind.logprobs))

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
