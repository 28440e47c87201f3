"""Log the metrics, images, report and adapter on disk to MLflow again: `python -m t2i_feedback.tools.publish`.

Twice is the same as once. Nothing is logged that was made with other parameters than params.yaml has now.
"""

from t2i_feedback.foundation import running
from t2i_feedback.tracking import publish


def main() -> None:
    publish.publish()


if __name__ == "__main__":
    running.run(main)
