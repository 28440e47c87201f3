"""The HTTP client under OpenAI's: it tells of each attempt of a question, those that OpenAI's makes by itself too."""

from collections.abc import Callable
from typing import Any

import openai

UNSENT = (
    "ConnectError",
    "ConnectTimeout",
    "PoolTimeout",
    "ProxyError",
    "UnsupportedProtocol",
)  # it reached nobody


class Client(openai.DefaultHttpxClient):
    """`before` is called before an attempt and may raise; `lost` when the server may have worked for nothing."""

    def __init__(self, before: Callable[[], None], lost: Callable[[], None], trust_env: bool):
        super().__init__(trust_env=trust_env)
        self._before_attempt, self._after_loss = before, lost

    def send(self, request: Any, **how: Any) -> Any:
        if request.method != "POST":  # its list of models, which costs nothing
            return super().send(request, **how)
        self._before_attempt()
        try:
            return super().send(request, **how)
        except Exception as error:
            if type(error).__name__ not in UNSENT:
                self._after_loss()
            raise
