"""`python` and `dvc` that begin with the libraries imported already: most of what a short process costs is imports.

In `environment(...)` the `python` and `dvc` of PATH ask a server, which has imported the libraries and nothing of ours,
to fork. The fork takes over the caller's arguments, folder, environment and files and runs the module, the script or
the code as `__main__`; its status becomes the caller's (1 after a Ctrl-C that nothing catches), whose signals it gets,
and with whom it dies. A command whose environment has other values of what is read when Python starts or libraries are
imported is the real program.

What a module forgot to import goes unnoticed here: test_imports looks for it, and the first run of the DAG in tests is
one of real processes. So are those of tests of memory, of imports and of a process's children.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

LIBRARIES = (
    "torch._dynamo",
    "torchvision.transforms.v2",
    "scipy.linalg",
    "scipy.stats",
    "skimage.metrics",
    "sklearn.metrics",
    "accelerate",
    "peft",
    "transformers.models.auto",
    "transformers.models.clip.modeling_clip",
    "transformers.models.llava.modeling_llava",
    "diffusers.loaders",
    "diffusers.models.autoencoders",
    "diffusers.models.unets.unet_2d_condition",
    "torch_fidelity",
    "matplotlib.pyplot",
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
    "git",
    "dvc.cli",
    "dvc.repo",
    "dvc.repo.experiments.run",
    "dvc.commands.repro",
    "dvc.commands.experiments",
)
READ_AT_IMPORT = ("HF_", "MKL_", "MPL", "OMP_", "OPENBLAS_", "PYTHONHASHSEED", "TRANSFORMERS_")
REAL = Path(sys.executable).parent

_CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
name, *arguments = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
command = [argument for argument in arguments if argument != "-u"] if name == "python" else ["-m", "dvc", *arguments]
chosen = {{variable: value for variable, value in os.environ.items() if variable.startswith({read_at_import})}}
module = command[1].partition(".")[0] if command[:1] == ["-m"] else None
is_code = command[:1] == ["-c"] or command[:1] and command[0].endswith(".py")
if not is_code and module not in ("t2i_feedback", "dvc", "torch") or chosen != {chosen}:
    os.execv(f"{real}/{{name}}", [f"{real}/{{name}}", *arguments])
request = {{"command": command, "folder": os.getcwd(), "environment": dict(os.environ), "python": "{python_here}"}}
request = json.dumps(request).encode()
server = socket.socket(socket.AF_UNIX)
server.connect("{address}")
socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
server.sendall(request)
answers = server.makefile()
child = int(answers.readline())
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, _: os.killpg(child, number))
status = int(answers.readline() or 1)
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


def real(given: Mapping[str, str]) -> dict[str, str]:
    """`given`, in which `python` and `dvc` are those of this virtual environment."""
    return {**given, "PATH": f"{REAL}:{given.get('PATH', os.defpath)}"}


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """`given`, in which `python` and `dvc` are warm; the real ones elsewhere than on Linux."""
    if not hasattr(os, "pidfd_open"):
        return real(given)
    folder = _programs(tuple(sorted(item for item in given.items() if item[0].startswith(READ_AT_IMPORT))))
    return {**given, "PATH": f"{folder}:{real(given)['PATH']}"}


@cache
def _programs(chosen: tuple[tuple[str, str], ...]) -> Path:
    """The folder of `python` and `dvc`, whose server was started with these variables among those read at import."""
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    others = {name: value for name, value in os.environ.items() if not name.startswith(READ_AT_IMPORT)}
    command = [sys.executable, __file__, str(folder / "socket")]
    server = subprocess.Popen(command, env=others | dict(chosen), stdout=subprocess.PIPE)
    atexit.register(shutil.rmtree, folder)
    atexit.register(server.kill)
    assert server.stdout and server.stdout.readline() == b"warm\n", "the server of warm processes did not start"
    for name in ("python", "dvc"):
        program = _CLIENT.format(
            python=sys.executable,
            python_here=folder / "python",
            real=REAL,
            address=folder / "socket",
            chosen=dict(chosen),
            read_at_import=READ_AT_IMPORT,
        )
        (folder / name).write_text(program)
        (folder / name).chmod(0o755)
    return folder


# ------------------------------------------------------------------------------------------------------- the server


def serve(address: str) -> None:
    """Fork for whoever connects, until killed."""
    sys.path.remove(str(Path(__file__).parent))
    gc.disable()  # what is imported stays
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which end this process
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    print("warm", flush=True)
    while True:
        connection, _ = listening.accept()
        if not os.fork():
            listening.close()
            return attend(connection)
        connection.close()


def attend(connection: socket.socket) -> None:
    """Fork once more; tell the client the number of the new process, later its status. It dies with the client."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, files, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as stream:
        request = json.loads(stream.read(int.from_bytes(size, "big")))
    child = os.fork()
    if not child:
        connection.close()
        return become(request, files)
    os.setpgid(child, child)  # what kills the client's group reaches, through `attend`, all that the child starts
    for file in files:
        os.close(file)
    connection.sendall(f"{child}\n".encode())
    ended = os.pidfd_open(child)
    if ended not in select.select([ended, connection], [], [])[0]:
        os.killpg(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        connection.sendall(f"{status}\n".encode())
    finally:
        os._exit(0)


def become(request: dict, files: list[int]) -> None:
    """Run what was asked for, as if this process had been started for it."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.executable = request["python"]  # so that what it starts is warm as well
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    on_python_path = [folder for folder in os.environ.get("PYTHONPATH", "").split(":") if folder]
    for name in ("random", "numpy.random"):
        sys.modules[name].seed()
    command = request["command"]
    kind, first, *rest = command if command[0] in ("-m", "-c") else ("script", *command)
    sys.argv = ["-c" if kind == "-c" else first, *rest]
    beside = str(Path(first).absolute().parent) if kind == "script" else request["folder"]
    sys.path[:0] = [beside, *(str(Path(folder).absolute()) for folder in on_python_path)]
    if kind == "-m":
        runpy.run_module(first, run_name="__main__", alter_sys=True)
    elif kind == "-c":
        exec(first, {"__name__": "__main__"})
    else:
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1])
