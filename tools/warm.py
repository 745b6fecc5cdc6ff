"""A process that holds the dear imports, and a fork of it for each check: what `lab.py` runs where it can.

Half of the time of a small test file is `import torch` and what comes with it. Here it is paid once. The
package itself is not imported before a fork, so that each check sees what it would see alone, coverage
included.

A request is a line of JSON, `{"id", "command", "env", "out"}`: what follows `python` on a command line, the
whole environment, and the file for what is said. Two lines answer it: `{"id", "pid"}` at once (the fork leads
a process group, so that it may be ended with what it started), `{"id", "code", "processor"}` at its end. The
server ends with its input.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import sys
from typing import Any

DEAR = (
    'torch',
    'torchvision',
    'numpy',
    'PIL.Image',
    'safetensors.torch',
    'tokenizers',
    'timm',
    'accelerate',
    'transformers',
    'transformers.modeling_utils',
    'sklearn.linear_model',
    'plotly.graph_objects',
    'ipywidgets',
    'anywidget',
    'IPython',
    'nbformat',
    'execnb.shell',
    'nbdev.test',
    'matplotlib',
    'scipy.stats',
    'torch._dynamo',
    'rich.progress',
    'pytest',
    '_pytest.junitxml',
    'hypothesis.internal.observability',
    'anyio.pytest_plugin',
    'nbval.plugin',
    'pytest_cov.plugin',
    'coverage',
)


def become(command: list[str], env: dict[str, str], out: str) -> None:
    "In the fork: be `python COMMAND`."
    os.setsid()
    os.environ.clear()
    os.environ.update(env)
    for where, number, how in ((os.devnull, 0, os.O_RDONLY), (out, 1, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)):
        file = os.open(where, how)
        os.dup2(file, number)
        os.close(file)
    os.dup2(1, 2)
    if command[0] == '-m':
        sys.argv, sys.path[0] = command[1:], ''
        runpy.run_module(command[1], run_name='__main__', alter_sys=True)
    else:
        sys.argv, sys.path[0] = command, os.path.dirname(os.path.abspath(command[0]))
        runpy.run_path(command[0], run_name='__main__')


def tell(**words: Any) -> None:
    print(json.dumps(words), flush=True)


def serve() -> None:
    "Fork for each request until the input ends. Returns in no fork: that one exits with its command."
    running: dict[int, int] = {}  # process: request
    waiting = b''
    while True:
        if select.select([0], [], [], 0.02 if running else None)[0]:
            new = os.read(0, 65536)
            if not new:
                return
            *lines, waiting = (waiting + new).split(b'\n')
            for line in lines:
                request = json.loads(line)
                number = request.pop('id')
                pid = os.fork()
                if not pid:
                    become(**request)
                    sys.exit(0)
                running[pid] = number
                tell(id=number, pid=pid)
        for pid in list(running):
            done, status, used = os.wait4(pid, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                tell(id=running.pop(pid), code=code, processor=used.ru_utime + used.ru_stime)


if __name__ == '__main__':
    for name in DEAR:
        try:
            importlib.import_module(name)
        except ImportError:
            pass
    gc.freeze()
    serve()
