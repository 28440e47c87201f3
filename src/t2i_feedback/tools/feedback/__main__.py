"""Fine-tune to a taste of your own in a browser: score images, and each epoch is trained when its images are scored.

    make feedback PREFERENCE="scenes at night"        # EPOCHS=8 QUESTIONS=16; without PREFERENCE: what params.yaml says
    make feedback PREFERENCE="scenes at night" PAIRS=1            # two images of a prompt at a time: which is better?
    python -m t2i_feedback.tools.feedback --preference "scenes at night"

Prints an address on this machine that only its reader can open. What is answered is on the disk before the next image
appears; the browser may be closed, this program and the training may be killed, and the same command goes on.
"""

import secrets
import socket

import uvicorn

from t2i_feedback import arms, params
from t2i_feedback.finetuning.section import Finetune
from t2i_feedback.foundation import ending, files, paths, running, yaml_files
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.params import Params
from t2i_feedback.rewards import human
from t2i_feedback.tools import profile
from t2i_feedback.tools.arguments import Arguments, count, natural
from t2i_feedback.tools.feedback.server import make_app
from t2i_feedback.tools.feedback.training import Training


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("--preference", help="the taste, in words; written into params.yaml with a person as its user")
    parser.add_argument("--epochs", type=count, help="with --preference: so many are trained; else 8")
    parser.add_argument("--questions", type=count, help="with --preference: images to ask about per epoch; else 16")
    parser.add_argument("--pairs", action="store_true", help="two images of a prompt side by side, instead of one")
    parser.add_argument("--port", type=natural, default=0, help="of the page; 0 = one that is free")
    given = parser.parse_args()
    p = params.load()
    if given.preference:
        p = _set(given.preference, given.epochs or 8, given.questions or 16, given.pairs)
    elif given.epochs or given.questions:
        raise UserError("EPOCHS and QUESTIONS go with PREFERENCE: without it the page asks as params.yaml says")
    config = p.finetune
    if config.user != "file" or "preference" not in config.reward:
        raise UserError(
            'no person is asked (finetune.user is not file): make feedback PREFERENCE="scenes at night" sets that'
        )
    if given.pairs:
        check_pairs(config)
    sheet = human.sheet_of(config.preference, paths.feedback())
    sheet.read()  # what is wrong with it is said before anything is served
    with socket.socket() as listening:
        try:
            listening.bind(("127.0.0.1", given.port))
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(f"--port: {given.port} cannot be had: {why}") from None
        port, token = listening.getsockname()[1], secrets.token_urlsafe(24)
        training = Training(
            ["dvc", "repro", "finetune"],
            ["dvc", "repro", *(f"generate@{arm.name}" for arm in (arms.base(), arms.finetuned()))],
            paths.cache() / "feedback.log",
        )
        app = make_app(sheet, training, config.epochs, port, token, by_pairs=given.pairs)
        print(f"feedback: “{config.preference}”; open http://127.0.0.1:{port}/?token={token}", flush=True)
        print("feedback: Ctrl-C ends it; nothing that was answered is lost", flush=True)
        with ending.unwound():  # uvicorn raises anew what ended it
            try:
                uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listening])
            finally:
                training.end()


def check_pairs(config: Finetune) -> None:
    """Raises UserError when an epoch asks about one image of a prompt, so that there is nothing to compare it with."""
    needed = 2 * config.prompts_per_epoch
    if config.answers_per_epoch < needed:
        raise UserError(
            f"PAIRS: an epoch asks about {config.answers_per_epoch} images of {config.prompts_per_epoch} prompts, and "
            f"two of one prompt are compared: QUESTIONS={needed} or more (finetune.feedback_budget), or fewer "
            "finetune.prompts_per_epoch"
        )


def _set(preference: str, epochs: int, questions: int, pairs: bool) -> Params:
    """Write the preference into params.yaml, comments kept, with a person as its user.

    Pairs need equally many images of each prompt, which `acquisition: random` takes.
    """
    changes: dict[str, profile.Scalar] = {
        "finetune.preference": preference,
        "finetune.user": "file",
        "finetune.acquisition": "random" if pairs else "uncertainty",
        "finetune.feedback_budget": questions,
        "finetune.epochs": epochs,
    }
    text = profile.merged(changes, "params.yaml with what was asked for")
    found = params.check(yaml_files.parse(text, str(paths.PARAMS)), str(paths.PARAMS))
    if pairs:
        check_pairs(found.finetune)
    if text != paths.PARAMS.read_text(encoding="utf-8"):
        files.write_text(paths.PARAMS, text)
        print(f"feedback: params.yaml now says {', '.join(f'{key}: {value}' for key, value in changes.items())}")
    return found


if __name__ == "__main__":
    running.run(main)
