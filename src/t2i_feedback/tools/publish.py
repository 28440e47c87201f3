"""Log the metrics, images and report that are here to MLflow again. Twice is the same as once.

Nothing is published that the present parameters and code did not make: DVC must find every stage up to date.
"""

from t2i_feedback.foundation import running
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.tracking import publish, store


def main() -> None:
    if store.wanted():
        publish.check()
        check_up_to_date()
    publish.publish()


def check_up_to_date(wanted: str = "published to MLflow") -> None:
    """Raise UserError that names a stage that DVC finds out of date: its numbers are of other code, data or outputs.

    It says that nothing is as `wanted`.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            found = repo.status()
    except LockError:
        raise UserError(
            f"nothing is {wanted}: a run or another DVC command is under way here; wait for its end "
            "(`make doctor` tells of a lock that an ended one left)"
        ) from None
    except DvcException as error:
        raise UserError(f"nothing is {wanted}: DVC cannot say what is up to date ({error})") from None
    stale = {name: why for name, why in found.items() if why != ["always changed"]}
    if not stale:
        return
    name, why = next(iter(stale.items()))
    changed = [path for one in why if isinstance(one, dict) for paths in one.values() for path in paths]
    more = f" and {len(stale) - 1} more" if len(stale) > 1 else ""
    raise UserError(
        f"nothing is {wanted}: stage {name}{more} is out of date ({', '.join(map(str, changed[:2]))}); "
        "run `dvc repro` first"
    )


if __name__ == "__main__":
    running.run(main)
