"""MLflow's UI on the runs that stages write, until Ctrl-C. A server that keeps them has a UI of its own."""

import os

from t2i_feedback.foundation import running
from t2i_feedback.tracking import store

HOST, PORT = "127.0.0.1", "5000"


def main() -> None:
    if store.served():
        print(f"MLflow's server has its own UI: {store.shown(store.uri())}")
        return
    store.refuse_folder()
    print(f"in half a minute: http://{HOST}:{PORT}, Ctrl-C ends it", flush=True)
    environment = os.environ | {"MLFLOW_BACKEND_STORE_URI": store.uri()}  # as an argument `ps` would show its password
    os.execvpe("mlflow", ["mlflow", "ui", "--host", HOST, "--port", PORT], environment)


if __name__ == "__main__":
    running.run(main)
