"""A model that cannot be had: why, in words, and what to do. The one place that knows the model hub's errors."""

from t2i_feedback.foundation.errors import first_line


def why(name: str, revision: str, error: BaseException, kind: str = "checkpoint of the kind that is needed") -> str:
    """What is the matter with the model of that name: the end of a sentence that begins with it.

    `error` is what huggingface_hub, or a library above it, raised; `kind` is what was looked for.
    """
    from huggingface_hub import errors

    found: BaseException | None = error
    while found is not None and not isinstance(found, (errors.HfHubHTTPError, errors.HFValidationError)):
        if isinstance(found, errors.LocalEntryNotFoundError):
            break
        found = found.__cause__ or found.__context__
    match found:
        case errors.HFValidationError():
            return "is neither a folder here nor a name that the hub could have (owner/name)"
        case errors.GatedRepoError():
            return f"is gated: accept its terms at https://huggingface.co/{name}, then `hf auth login`"
        case errors.RepositoryNotFoundError():
            return "is no folder here, and the hub has no such model; is it misspelt, or private (`hf auth login`)?"
        case errors.RevisionNotFoundError():
            return f"has no revision {revision!r} on the hub"
        case errors.LocalEntryNotFoundError():
            return (
                "is neither a folder here nor in the hub cache, and the hub cannot be reached from here; "
                f"{fetch(name, revision)}"
            )
        case errors.EntryNotFoundError():
            return f"is no {kind}"
    return f"could not be fetched or read ({first_line(error)[:160]}); {fetch(name, revision)}"


def fetch(name: str, revision: str = "main") -> str:
    """What to do when a model is not here."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return (
        f"with internet, `hf download {name} --revision {revision}` fetches it into the hub cache "
        f"({HF_HUB_CACHE}; HF_HOME moves it)"
    )
