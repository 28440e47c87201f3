"""The backend `local`: a checkpoint that transformers loads into this process."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from t2i_feedback.foundation.params import CHECKPOINT, FREE, Count
from t2i_feedback.mllm.backends import Access, Entry

if TYPE_CHECKING:
    from t2i_feedback.mllm.base import Backend
    from t2i_feedback.mllm.ledger import Ledger

PACKAGE = "package:"  # package:NAME/FILE is a file that a Python package brings along


class LocalEntry(Entry):
    """A checkpoint: a folder, a GGUF file, `package:NAME/FILE`, or a hub id."""

    in_process: ClassVar[bool] = True

    backend: Literal["local"]
    model: Annotated[str, Field(min_length=1), CHECKPOINT]
    revision: str = "main"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    quantisation: Literal["none", "8bit", "4bit"] = "none"
    reading: Literal["auto", "probability", "text"] = "auto"  # of yes/no and scores; auto = probability
    batch_size: Annotated[Count, FREE] = 8
    trust_remote_code: bool = False

    def access(self, name: str, ledger: "Ledger") -> Access:
        from t2i_feedback.mllm import checkpoint

        revision = checkpoint.revision(name, self)

        def load() -> "Backend":
            from t2i_feedback.mllm.local import LocalMllm

            return LocalMllm(name, self, revision)

        return Access(json.dumps(["local", revision, self.dtype, self.quantisation]), load)

    @property
    def concurrent(self) -> int:
        return self.batch_size

    @property
    def hub_model(self) -> str | None:
        path = Path(self.model)
        here = self.model.startswith(PACKAGE) or path.is_dir() or path.suffix == ".gguf"
        return None if here else self.model

    @property
    def precision(self) -> str:
        return self.dtype if self.quantisation == "none" else self.quantisation

    @property
    def wants_accelerator(self) -> bool:
        return self.dtype != "float32" and self.device != "cpu"


ENTRY = LocalEntry
