"""What an endpoint may cost: calls and dollars over the life of the ledger, whatever stage or process spends them."""

from t2i_feedback.foundation.errors import UserError
from t2i_feedback.mllm.backends.endpoint import EndpointEntry
from t2i_feedback.mllm.base import Reply
from t2i_feedback.mllm.ledger import Ledger


class Budget:
    """The account of one model at one server. Safe under threads and processes."""

    def __init__(self, name: str, entry: EndpointEntry, ledger: Ledger):
        self._name, self._entry, self._ledger = name, entry, ledger
        self._account = entry.account

    def take(self) -> None:
        """Before a call. Raises UserError when the budget is used up; calls that are under way may still end."""
        entry = self._entry
        if self._ledger.take(self._account, entry.max_calls, entry.max_cost_usd):
            return
        calls, cost = self._ledger.spent(self._account)
        if entry.max_calls is not None and calls >= entry.max_calls:
            key, limit = "max_calls", f"{entry.max_calls}"
        else:
            key, limit = "max_cost_usd", f"{entry.max_cost_usd:g}"
        raise UserError(
            f"mllms.{self._name}: the budget of {key} = {limit} is used up ({calls} calls, ${cost:.4f}); every answer "
            "is kept. Raise it and run the same command again."
        )

    def give_back(self) -> None:
        """After a call that reached nobody."""
        self._ledger.give_back(self._account)

    def noted(self, subject: str) -> str | None:
        """What was found out about the server and is remembered with its account."""
        return self._ledger.noted(f"{self._account} {subject}")

    def note(self, subject: str, note: str) -> None:
        self._ledger.note(f"{self._account} {subject}", note)

    def pay(self, reply: Reply) -> None:
        """After a call."""
        if cost := self._entry.cost_usd(reply.tokens_in, reply.tokens_out):
            self._ledger.pay(self._account, cost)
