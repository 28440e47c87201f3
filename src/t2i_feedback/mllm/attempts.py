"""The HTTP client under OpenAI's: it tells of each attempt of a question, those that OpenAI's makes by itself too."""

from collections.abc import Callable
from typing import Any

import openai

UNSENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol")  # it reached nobody


class Client(openai.DefaultHttpxClient):
    """`before` is called before an attempt and may raise; `unsent` when it reached nobody, `lost` when a server may
    have worked for nothing."""

    def __init__(
        self, before: Callable[[], None], unsent: Callable[[], None], lost: Callable[[], None], *, trust_env: bool
    ):
        super().__init__(trust_env=trust_env)
        self._before_attempt, self._unsent, self._after_loss = before, unsent, lost

    def send(self, request: Any, **how: Any) -> Any:
        if request.method != "POST":  # its list of models, which costs nothing
            return super().send(request, **how)
        self._before_attempt()
        try:
            return super().send(request, **how)
        except Exception as error:
            (self._unsent if type(error).__name__ in UNSENT else self._after_loss)()
            raise
