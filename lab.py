#!/usr/bin/env python3
"""The commands of the lab, on Linux, macOS and Windows, with the standard library alone.

    python lab.py             open JupyterLab on the first tutorial
    python lab.py test        run every check
    python lab.py test mae    run what concerns one method
    python lab.py quick       run the checks of three minutes
    python lab.py download FOLDER        fetch all wheels, for machines without a network;
    python lab.py --find-links FOLDER    which install from them alone

The first call makes the folder .venv beside this file and installs into it; it says size and time before.
A call that was interrupted goes on where it stopped. `python lab.py --help` lists the options.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import fnmatch
import hashlib
import importlib.util
import json
import os
import queue
import re
import runpy
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / '.venv'
WINDOWS = os.name == 'nt'
PYTHON = VENV / ('Scripts/python.exe' if WINDOWS else 'bin/python')
OLDEST_PYTHON, OLDEST_TORCH = (3, 11), (2, 11)
CPU_INDEX = 'https://download.pytorch.org/whl/cpu'  # where PyTorch keeps its CPU builds for Linux

# What an installation takes, in GB: (download, on disk). Linux was measured; the others are its size without
# the GPU's libraries.
SIZES = {'linux': (3.2, 6.0), 'linux cpu': (0.4, 1.5), 'darwin': (0.3, 1.2), 'win32': (0.4, 1.5)}
SIZE_OF_TESTS = (0.3, 1.2)  # more, for `test` and `quick`, with the browser

# Files of the package that no notebook makes.
HAND_KEPT = (
    '__init__.py',
    '*.pyi',
    '*/__init__.py',
    '_moved.py',
    'py.typed',
    'show/static/*',
    'data/files/*',
    'weights/*',
)

TIMED = 'browser tests marked timed'  # they measure times: nothing else may run beside them

# Seconds that a file should take under test on 2 quiet cores. One that takes longer is named with the load
# of the machine beside it and fails nothing: `maskedlab bench tests` is where these are kept. The longest
# pattern that fits counts.
BUDGETS = {
    'nbdev-*': 15,
    'ruff': 5,
    'mypy': 40,
    'nbs/*': 10,
    'nbs/design.ipynb': 30,
    'nbs/claims/*': 15,
    'nbs/course/*': 15,
    'tests/*': 20,
    'tests/test_contract.py': 60,
    'tests/test_package.py': 40,
    'tests/test_tutorials*': 60,
    'tests marked quick': 90,
    'tests/browser/*': 60,
    'browser tests marked quick': 60,
    TIMED: 90,
    'tutorials/*': 25,
}
HANG = 900  # seconds after which a file is ended, and has failed; --patience multiplies them
SERVER = [str(ROOT / 'tools' / 'warm.py')]  # what checks are forked from
TIMES = 'bench/results/tests.json'  # what each file took when that was last written down


class Trouble(Exception):
    """What went wrong and what to do about it, in one sentence."""


def say(*words: object) -> None:
    print(*words, flush=True)


# ------------------------------------------------------------------------------------------------- installing


def newer_python() -> str | None:
    """A Python on this machine that is new enough, where the one that runs this file is not."""
    commands = [[f'python3.{minor}'] for minor in range(20, OLDEST_PYTHON[1] - 1, -1)] + [
        ['python3'],
        ['py', '-3'],
    ]
    for command in commands:
        if not shutil.which(command[0]):
            continue
        probe = [
            *command,
            '-c',
            'import sys; print(sys.version_info >= (3, 11), sys.executable)',
        ]  # a name alone may be an empty promise
        ok, _, path = subprocess.run(probe, capture_output=True, text=True).stdout.strip().partition(' ')
        if ok == 'True':
            return path
    return None


def version(text: str) -> tuple[int, ...]:
    """'2.14.1+cpu' -> (2, 14, 1)."""
    return tuple(int(n) for n in re.findall(r'\d+', text.split('+')[0])[:3])


@dataclass
class Torch:
    """A torch that is there, and where."""

    version: str
    folders: list[str]  # where its Python keeps packages
    python: str


def torch_of(python: str | Path) -> Torch | None:
    """The torch that this Python can import; None where Python or torch is missing or too old."""
    ask = (
        'import json, sys, torch; '
        'folders = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]; '
        'print(json.dumps([list(sys.version_info[:2]), torch.__version__, folders]))'
    )
    try:
        probe = subprocess.run([str(python), '-c', ask], capture_output=True, text=True)
        its_python, its_version, folders = json.loads(probe.stdout.strip().rpartition('\n')[2])
    except (OSError, ValueError):
        return None
    old = tuple(its_python) < OLDEST_PYTHON or version(its_version)[:2] < OLDEST_TORCH
    return None if old else Torch(its_version, folders, str(python))


def pythons() -> list[str]:
    """The Python that runs this file and those of the environments that are activated, without our own."""
    inside = ('Scripts/python.exe', 'python.exe') if WINDOWS else ('bin/python',)
    active = [Path(os.environ[k]) for k in ('VIRTUAL_ENV', 'CONDA_PREFIX') if os.environ.get(k)]
    found = [sys.executable, *(str(e / p) for e in active for p in inside if (e / p).exists())]
    return [p for p in dict.fromkeys(found) if Path(p).parent != PYTHON.parent]


def has_gpu() -> bool:
    return shutil.which('nvidia-smi') is not None or Path('/proc/driver/nvidia').exists()


def size(cpu: bool, tests: bool) -> tuple[float, float]:
    """GB to download and GB on disk."""
    down, disk = SIZES[
        'linux cpu' if cpu and sys.platform == 'linux' else sys.platform if sys.platform in SIZES else 'linux'
    ]
    return (down + SIZE_OF_TESTS[0], disk + SIZE_OF_TESTS[1]) if tests else (down, disk)


def minutes(download: float) -> float:
    """How long that many GB take at 50 Mbit/s, and the unpacking."""
    return download * 8000 / 50 / 60 + 2


def announce(
    options: argparse.Namespace, tests: bool, torch: Torch | None = None, folder: Path | None = None
) -> None:
    """Say size and time first, and offer the CPU build where a GPU build would be of no use."""
    down, disk = size(options.cpu or torch is not None, tests)
    way = f'about {down:.1f} GB to download ({minutes(down):.0f} minutes at 50 Mbit/s)'
    if options.find_links:
        way = f'from {options.find_links} alone, no network is asked'
    if folder:
        say(f'Downloading into {folder}: {way}.')
    else:
        say(f'Installing into {VENV}: {way}, {disk:.1f} GB on disk.')
    if torch:
        say(f'It takes the torch {torch.version} that is already installed ({torch.python}).')
    elif sys.platform == 'linux' and not (
        options.cpu or options.torch_index or options.find_links or has_gpu()
    ):
        small = size(True, tests)
        say('No NVIDIA GPU was found. The CPU build of torch would do (option --cpu):')
        say(f'{small[0]:.1f} GB to download, {small[1]:.1f} GB on disk.')
        if sys.stdin and sys.stdin.isatty() and 'CI' not in os.environ:
            options.cpu = input('Take the CPU build? [y/N] ').strip().lower().startswith('y')
            down, disk = size(options.cpu, tests)
    disk = down if folder else disk
    free = shutil.disk_usage(folder or ROOT).free / 1e9
    if free < disk:
        raise Trouble(
            f'about {disk:.1f} GB are needed and this disk has {free:.1f} GB left; free some space'
            + ('.' if options.cpu else ', or take the smaller CPU build with --cpu.')
        )


def make_venv(folder: Path, python: str) -> None:
    """An environment with pip, of this Python."""
    made = subprocess.run([python, '-m', 'venv', str(folder)], capture_output=True, text=True)
    if 'ensurepip is not' in made.stdout + made.stderr:
        raise Trouble(
            'this Python lacks its venv part; on Debian and Ubuntu run "sudo apt-get install '
            'python3-venv", then this command again.'
        )
    if made.returncode:
        raise Trouble(f'pip could not be put into {folder}; delete that folder and run this command again.')


BORROWED = 'borrowed.pth'  # in .venv, and a copy where its packages are


def borrow(torch: Torch) -> Torch | None:
    """Let .venv see the packages of the environment that holds this torch, after its own; its torch then.

    A venv that is made inside another one sees neither its packages nor its torch, so they are named.
    """
    command = [str(PYTHON), '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))']
    ours = Path(subprocess.run(command, capture_output=True, text=True).stdout.strip())
    files = [VENV / BORROWED, ours / BORROWED]
    for file in files:
        file.write_text('\n'.join(torch.folders) + '\n', encoding='utf-8')
    seen = torch_of(PYTHON)
    if not seen:
        say(f'The Python of {VENV} cannot use that torch; it takes one of its own.')
        for file in files:
            file.unlink()
    return seen


def still_there() -> bool:
    """Whether the packages that .venv borrows are where they were."""
    lent = VENV / BORROWED
    return not lent.exists() or all(map(os.path.isdir, lent.read_text(encoding='utf-8').splitlines()))


def check_venv() -> bool:
    """Whether .venv is there; an unfinished one is mended, a broken one is named."""
    if not PYTHON.exists():
        return False
    probe = subprocess.run(
        [str(PYTHON), '-c', 'import sys; print(*sys.version_info[:2])'], capture_output=True, text=True
    )
    if probe.returncode or tuple(map(int, probe.stdout.split())) < OLDEST_PYTHON:
        raise Trouble(
            f'the Python in {VENV} does not run or is older than 3.11; delete that folder and run this '
            'command again.'
        )
    if subprocess.run([str(PYTHON), '-m', 'pip', '--version'], capture_output=True).returncode:
        subprocess.run([str(PYTHON), '-m', 'ensurepip', '--upgrade'], capture_output=True)
    return True


class Unresolvable(Exception):
    """pip found no set of versions, which no second try will change. Its text is what was not found."""


OFFLINE = (
    'NameResolutionError|Name or service not known|nodename nor servname|getaddrinfo failed|'
    'Temporary failure in name resolution|Network is unreachable|No route to host|Connection refused'
)


def pip(
    *arguments: str, verb: str = 'install', python: Path | None = None, tries: int = 4, pause: float = 5
) -> None:
    """`pip install`, again after a broken download: what has arrived stays in pip's cache."""
    python = python or PYTHON
    log = (VENV if verb == 'install' else Path(tempfile.gettempdir())) / f'{verb}.log'
    env = {**os.environ, 'PIP_DISABLE_PIP_VERSION_CHECK': '1', 'PIP_RESUME_RETRIES': '10'}
    for n in range(1, tries + 1):
        log.unlink(missing_ok=True)
        if (
            subprocess.run(
                [str(python), '-m', 'pip', verb, '--log', str(log), *arguments], cwd=ROOT, env=env
            ).returncode
            == 0
        ):
            return
        text = log.read_text(encoding='utf-8', errors='replace') if log.exists() else ''
        broken = re.search(
            'Retrying \\(|[Cc]onnection|[Tt]imed? ?out|[Ii]ncomplete|RemoteDisconnected|'
            'DO NOT MATCH THE HASHES|HTTP error|SSLError',
            text,
        )
        if broken and re.search(OFFLINE, text) and 'Downloading ' not in text:
            raise Trouble(
                'no package server can be reached; go on where there is a network, or install from a '
                'folder of wheels with --find-links (python lab.py download FOLDER makes one).'
            )
        if (
            re.search('ResolutionImpossible|No matching distribution|conflicting dependencies', text)
            and not broken
        ):
            missing = re.search('No matching distribution found for (.+)', text)
            raise Unresolvable(missing[1].strip() if missing else 'versions that fit together')
        if 'No space left' in text:
            raise Trouble(
                'the disk is full; free some space and run this command again: it goes on where it stopped.'
            )
        if not broken:
            raise Trouble(
                f'pip could not install {arguments[-1]}, for the reason above (details: {log}); mend it '
                'and run this command again.'
            )
        if n < tries:
            say(f'That did not finish. Trying again ({n + 1} of {tries}); what has arrived is kept.')
            time.sleep(pause * n)
    raise Trouble(
        'the installation did not finish; run this command again, it goes on where it stopped (details: '
        f'{log}).'
    )


def from_stick(folder: str | None, *arguments: str) -> None:
    """`pip install`; where a folder of wheels is given from it alone, and then nothing is tried again."""
    if folder:
        pip('--isolated', '--no-index', '--find-links', folder, *arguments, tries=1)  # whatever pip.conf says
    else:
        pip(*arguments)


def here() -> str:
    return f'Python {".".join(map(str, sys.version_info[:2]))} on {sys.platform}'


def torch_first(options: argparse.Namespace) -> list[str]:
    """What is asked of pip for torch, and the torchvision that belongs to it."""
    index = options.torch_index or (CPU_INDEX if options.cpu and sys.platform == 'linux' else None)
    which = [f'torch>={".".join(map(str, OLDEST_TORCH))}', 'torchvision']
    return [*(['--index-url', index] if index else []), *which]


def asked(extra: str) -> list[str]:
    """The requirements of `maskedlab[extra]` and of its build, word for word."""
    import tomllib

    table = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))
    project, todo, found = table['project'], [f'maskedlab[{extra}]'], []
    found += table['build-system']['requires'] + project['dependencies']
    while todo:
        for name in re.findall(r'[\w-]+', todo.pop().partition('[')[2]):
            more = project['optional-dependencies'][name]
            todo += [r for r in more if r.startswith('maskedlab[')]
            found += [r for r in more if not r.startswith('maskedlab[')]
    return list(dict.fromkeys(found))


def download(options: argparse.Namespace) -> None:
    """Put into a folder what `--find-links` will take from it: the same torch, constraints and extras."""
    folder = Path(options.names[0]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    announce(options, options.tests, folder=folder)
    with tempfile.TemporaryDirectory(prefix='maskedlab-') as scratch:
        python = Path(sys.executable)
        if importlib.util.find_spec('pip') is None:
            make_venv(Path(scratch), sys.executable)
            python = Path(scratch) / PYTHON.relative_to(VENV)
        fetch = lambda *words: pip('--wheel-dir', str(folder), *words, verb='wheel', python=python)
        try:
            fetch(*torch_first(options))
            torch = max((p.name.split('-')[1] for p in folder.glob('torch-*.whl')), key=version)
            pin = Path(scratch) / 'torch.txt'
            pin.write_text(f'torch=={torch.split("+")[0]}\n')
            package = ['-c', str(pin), '--find-links', str(folder)]
            package += asked('test' if options.tests else 'lab')
            try:
                fetch('-c', 'constraints.txt', *package)
            except Unresolvable:
                say('The versions in constraints.txt do not fit here; taking the newest that do.')
                fetch(*package)
        except Unresolvable as e:
            raise Trouble(f'pip finds no {e} for {here()}; try Python 3.12.') from None
    wheels = sorted(folder.glob('*.whl'))
    (folder / SUMS).write_text(''.join(f'{digest(p)}  {p.name}\n' for p in wheels))
    say(f'{folder} holds {len(wheels)} wheels for {here()}. There: python lab.py --find-links FOLDER')


SUMS = 'SHA256SUMS'


def digest(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def unharmed(folder: Path) -> None:
    """Hold the wheels of a stick to the sums beside them; one without sums is taken as it is."""
    if not any(folder.glob('*.whl')):
        raise Trouble(
            f'there is no wheel (*.whl) in {str(folder)!r}; give --find-links the folder that holds them.'
        )
    lines = (folder / SUMS).read_text().splitlines() if (folder / SUMS).exists() else []
    for line in lines:
        said, _, name = line.partition('  ')
        path = folder / Path(name).name
        if not path.exists() or digest(path) != said:
            what = 'is damaged' if path.exists() else 'is missing'
            raise Trouble(f'{path.name} {what} in {str(folder)!r}; copy it, or the folder, once more.')


def wanted(extra: str) -> str:
    """A digest of what an installation with this extra depends on; a change asks for a new one."""
    import tomllib

    project = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']
    what = [
        project.get('dependencies'),
        project.get('optional-dependencies'),
        project.get('scripts'),
        extra,
        str(VENV),
    ]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def install(extra: str, options: argparse.Namespace) -> None:
    """Bring .venv to what `maskedlab[extra]` asks for. A marker is written only after success."""
    marker = VENV / f'maskedlab-{extra}.txt'
    if PYTHON.exists() and marker.exists() and marker.read_text() == wanted(extra) and still_there():
        return
    if options.find_links:
        unharmed(Path(options.find_links))
    own = options.cpu or options.torch_index
    there = check_venv()
    torch = torch_of(PYTHON) if there else None
    lent = None if torch or own else next(filter(None, map(torch_of, pythons())), None)
    announce(options, extra == 'test', torch or lent)
    if not there:
        make_venv(VENV, lent.python if lent else sys.executable)
    torch = borrow(lent) if lent else torch
    stick = options.find_links
    if not stick:
        with contextlib.suppress(Unresolvable, Trouble):  # an older pip only starts a broken file anew
            pip('--quiet', '--upgrade', 'pip>=25.1', tries=1)
    lacking = lambda e: Trouble(
        f'{stick} holds no {e} for {here()}; fetch it where there is a network: python lab.py download '
        f'{"--tests " if extra == "test" else ""}FOLDER'
    )
    if not torch:
        try:
            from_stick(stick, *torch_first(options))
        except Unresolvable as e:
            raise lacking(e) if stick else Trouble(
                f'no torch >= 2.11 for this Python ({sys.version.split()[0]}) and system was found; try '
                'Python 3.12.'
            ) from None
        torch = torch_of(PYTHON)
        if not torch:
            raise Trouble(
                'torch was installed but cannot be imported; run ".venv/bin/python -c \'import torch\'" '
                'to see why.'
            )
    # What comes next must leave that torch alone, and take the torchvision that belongs to it.
    pin = VENV / 'torch.txt'
    pin.write_text(f'torch=={torch.version.split("+")[0]}\n')
    package = ['-c', str(pin), '-e', f'.[{extra}]']
    try:
        from_stick(stick, '-c', 'constraints.txt', *package)
    except Unresolvable:  # on another Python or system, or from wheels that were fetched without them
        say('The versions in constraints.txt do not fit here; taking the newest that do.')
        try:
            from_stick(stick, *package)
        except Unresolvable as e:
            raise lacking(e) if stick else Trouble(
                f'pip finds no versions that fit together for this Python (details: {VENV / "install.log"}).'
            ) from None
    probe = subprocess.run(
        [str(PYTHON), '-c', 'import torch, torchvision; torchvision.ops.nms'], capture_output=True, text=True
    )
    if probe.returncode:
        raise Trouble(
            f'torch and torchvision do not fit together ({probe.stderr.strip()[-80:]}); delete .venv and '
            'run this command again.'
        )
    quiet_lab()
    for done in ('lab', 'test') if extra == 'test' else ('lab',):
        (VENV / f'maskedlab-{done}.txt').write_text(wanted(done))


def quiet_lab() -> None:
    """Let this JupyterLab (not the user's) start without asking about news."""
    config = VENV / 'etc' / 'jupyter' / 'labconfig' / 'page_config.json'
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(
        json.dumps({'disabledExtensions': {'@jupyterlab/apputils-extension:announcements': True}})
    )


# ---------------------------------------------------------------------------------------------------- the lab


def free_port(wish: int | None) -> int:
    """The port that was asked for, or the first free one from 8888 on."""
    for port in [wish] if wish else range(8888, 8988):
        with socket.socket() as s:
            if not WINDOWS:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(('127.0.0.1', port))
            except (OSError, OverflowError):
                continue
            return port
    raise Trouble(f'port {wish} cannot be had; give another with --port, or none to take a free one.')


def no_display() -> bool:
    return 'SSH_CONNECTION' in os.environ or (
        sys.platform == 'linux' and not {'DISPLAY', 'WAYLAND_DISPLAY'} & set(os.environ)
    )


def answers(url: str) -> bool:
    """Whether a page of the local server can be had; no proxy is asked."""
    try:
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5).status == 200
    except OSError:
        return False


def lab(options: argparse.Namespace) -> int:
    """JupyterLab on the first tutorial, on the loopback address, until Ctrl-C."""
    start = time.monotonic()
    first = next(iter(sorted(ROOT.glob('tutorials/*.ipynb'))), None)
    port, token = free_port(options.port), secrets.token_hex(24)
    command = [
        str(PYTHON),
        '-m',
        'maskedlab.show.gate',  # JupyterLab, behind our own token whatever a configuration says
        'lab',
        str(port),
        f'--ServerApp.root_dir={ROOT}',
        '--ServerApp.answer_yes=True',
        '--ServerApp.log_level=WARN',
        '--LabApp.log_level=WARN',
    ]
    page = f'/lab/tree/{first.relative_to(ROOT).as_posix()}' if first else '/lab'
    command.append(f'--ServerApp.default_url={page}')
    if options.no_browser or no_display():
        command.append('--no-browser')
    if hasattr(os, 'geteuid') and os.geteuid() == 0:
        command.append('--allow-root')
    server = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, 'JUPYTER_TOKEN': token, 'JUPYTER_PREFER_ENV_PATH': '1'}
    )

    def report() -> None:
        url = f'http://127.0.0.1:{port}{page}?token={token}'
        while server.poll() is None and not answers(url):
            time.sleep(0.1)
        if server.poll() is None:
            say(f'\nThe lab is ready ({time.monotonic() - start:.1f} s): {url}\nCtrl-C stops it.\n')

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=report, daemon=True).start()
    try:
        return server.wait()
    except KeyboardInterrupt:  # the server hears Ctrl-C too, but not a signal to this process alone
        try:
            server.wait(2)
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            server.terminate()
        server.wait()
        return 0


# ----------------------------------------------------------------------------------------------------- checks


@dataclass
class Result:
    """What one file or check came to."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0
    text: str = ''  # shown where something failed
    processor: float | None = None  # seconds of processor time, where that is known: others disturb it less
    load: float = 0  # processes that wanted to run, for each core, at its end
    cases: dict[str, float] = field(default_factory=dict)  # of pytest: seconds of each test
    used: dict[str, float] = field(default_factory=dict)  # and its processor time, as tests/conftest.py says


@dataclass
class Item:
    """One file or check to run. Its exit code and, for pytest, its report tell how it went."""

    name: str
    command: list[str]  # what follows `python`
    report: Path | None = None  # pytest's junit file
    env: dict[str, str] = field(default_factory=dict)


def budget(name: str) -> float:
    """Seconds that a file should take."""
    fits = [pattern for pattern in BUDGETS if fnmatch.fnmatch(name, pattern)]
    return BUDGETS[max(fits, key=len)] if fits else 60


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def load() -> float:
    """Processes that want to run, for each core, over the last minute; 0 where the system does not say."""
    return os.getloadavg()[0] / cores() if hasattr(os, 'getloadavg') else 0.0


def environment(folder: Path) -> dict[str, str]:
    """What every check runs in: this tree's package, the test budget, no hub, nobody's own configuration."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith('MASKEDLAB_') or k == 'MASKEDLAB_DEVICE'}
    return {
        **mine,
        'MASKEDLAB_BUDGET': 'test',
        'OMP_NUM_THREADS': '1',  # two workers with two threads each would spin, not work
        'PYTHONPATH': str(ROOT),
        'PYTHONUTF8': '1',
        'HF_HUB_OFFLINE': '1',
        'JUPYTER_PREFER_ENV_PATH': '1',
        'JUPYTER_PLATFORM_DIRS': '1',
        'JUPYTER_CONFIG_DIR': str(folder / 'jupyter'),
        'IPYTHONDIR': str(folder / 'ipython'),
    }


def counts(report: Path) -> Result:
    """Read pytest's junit file."""
    result = Result()
    for suite in ET.parse(report).getroot().iter('testsuite'):
        tests, failures, errors, skipped = (
            int(suite.get(k, 0)) for k in ('tests', 'failures', 'errors', 'skipped')
        )
        result.passed += max(tests - failures - errors - skipped, 0)
        result.failed += failures + errors
        result.skipped += skipped
        for case in suite.iter('testcase'):
            name = f'{case.get("classname")}::{case.get("name")}'
            result.cases[name] = result.cases.get(name, 0) + float(case.get('time', 0))
            for said in case.iter('property'):
                if said.get('name') == 'processor':
                    result.used[name] = result.used.get(name, 0) + float(said.get('value', 0))
    return result


class Cold:
    """Runs a check in a Python of its own."""

    processor: float | None = None

    def __init__(self, command: list[str], env: dict[str, str], out: Path):
        python = [] if command[0].endswith('.exe') else [str(PYTHON)]
        with out.open('wb') as file:
            self.process = subprocess.Popen(
                [*python, *command],
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=not WINDOWS,
            )

    def wait(self, seconds: float) -> int | None:
        """Its exit code; None where it has none after that time."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> None:
        """End it and what it started."""
        if WINDOWS:
            subprocess.run(['taskkill', '/F', '/T', '/PID', str(self.process.pid)], capture_output=True)
        else:
            end_group(self.process.pid)
        self.process.wait()


def end_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


class Warm:
    """Runs a check in a fork of a process that has imported torch and its like already: see tools/warm.py."""

    server: subprocess.Popen | None = None
    alive = False
    processor: float | None = None
    answers: dict[int, queue.Queue] = {}
    lock = threading.Lock()

    def __init__(self, command: list[str], env: dict[str, str], out: Path):
        with self.lock, contextlib.suppress(OSError):
            number = len(self.answers)
            self.said = self.answers[number] = queue.Queue()
            if self.alive and self.server and self.server.stdin:
                request = dict(id=number, command=command, env=env, out=str(out))
                self.server.stdin.write(json.dumps(request) + '\n')
                self.server.stdin.flush()
            else:
                self.fail(number)
        self.pid = self.said.get()['pid']

    def wait(self, seconds: float) -> int | None:
        """Its exit code; None where it has none after that time."""
        try:
            answer = self.said.get(timeout=seconds)
        except queue.Empty:
            return None
        self.processor = answer.get('processor')
        return answer['code']

    def stop(self) -> None:
        """End it and what it started."""
        if self.pid:
            end_group(self.pid)

    @classmethod
    def fail(cls, number: int) -> None:
        """Answer in the place of a server that has died."""
        for answer in (dict(pid=0), dict(code=-1)):
            cls.answers[number].put(answer)

    @classmethod
    def start(cls, env: dict[str, str]) -> None:
        """Start the server. Where it dies, its checks end with exit code -1."""
        cls.alive, pipe = True, subprocess.PIPE
        command = [str(PYTHON), *SERVER]
        cls.server = server = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=pipe, stdout=pipe, text=True, start_new_session=True
        )

        def listen() -> None:
            for line in server.stdout or ():
                said = json.loads(line)
                cls.answers[said['id']].put(said)
            with cls.lock:
                cls.alive = False
                for number in cls.answers:
                    cls.fail(number)

        threading.Thread(target=listen, daemon=True).start()

    @classmethod
    def end(cls) -> None:
        """Let the server go, once its last check has ended."""
        if cls.server and cls.server.stdin:
            with contextlib.suppress(OSError):
                cls.server.stdin.close()
            cls.server.wait(10)
        cls.server = None


RUNNING: set[Cold | Warm] = set()


def run(item: Item, env: dict[str, str], patience: float = 1) -> Result:
    """Run one item. A failing command, a report without tests and one that hangs have failed."""
    start, code = time.monotonic(), None
    with tempfile.TemporaryDirectory(prefix='maskedlab-said-') as folder:
        out = Path(folder) / 'out'
        process = (Warm if Warm.server else Cold)(item.command, {**env, **item.env}, out)
        RUNNING.add(process)
        try:
            code = process.wait(HANG * patience)
        finally:
            RUNNING.discard(process)
            if code is None:
                process.stop()
        text = out.read_text(encoding='utf-8', errors='replace') if out.exists() else ''
    seconds = time.monotonic() - start
    if item.report:
        result = counts(item.report) if item.report.exists() else Result(failed=1)
    else:
        result = Result(passed=int(code == 0), failed=int(code != 0))
    result.seconds, result.text, result.load = seconds, text, load()
    result.processor = process.processor
    if code is None:
        why = f'stopped after {seconds:.0f} s'
    elif code == 5 and item.report:
        why = 'no test was collected'
    elif item.report and not item.report.exists():
        why = f'pytest wrote no report (exit code {code})'
    elif code and not (item.report and result.failed):
        why = f'exit code {code}'
    else:
        return result
    if result.passed or not result.failed:  # once: its own failure may have been counted
        result.failed += 1
    result.text += f'\n{item.name}: {why}\n'
    return result


def tell(name: str, r: Result) -> None:
    word = 'FAIL' if r.failed else 'skip' if r.skipped and not r.passed else 'ok'
    count = (
        f'  ({r.passed} passed, {r.failed} failed, {r.skipped} skipped)'
        if r.passed + r.failed + r.skipped > 1
        else ''
    )
    say(f'{r.seconds:7.1f} s  {word:4}  {name}{count}{late(name, r)}')
    if r.failed:
        say('\n'.join('    ' + line for line in r.text.strip().splitlines()[-120:]))
    else:
        for line in r.text.splitlines():
            if line.startswith('SKIPPED'):
                say('                ' + line)


def late(name: str, r: Result) -> str:
    """A warning, where a file took longer than it should."""
    over = r.seconds > budget(name)
    return f'  over its {budget(name):.0f} s (load {r.load:.1f} for each core)' if over else ''


def browser() -> str | None:
    """A Chromium or Chrome of this machine, for the tests that need a real browser."""
    names = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome')
    places = (
        '/Applications/Google Chrome.app/Contents/MacOS/Google Chrome',
        '/Applications/Chromium.app/Contents/MacOS/Chromium',
        *(
            f'{os.environ.get(k)}/Google/Chrome/Application/chrome.exe'
            for k in ('PROGRAMFILES', 'PROGRAMFILES(X86)', 'LOCALAPPDATA')
        ),
    )
    return next((p for p in map(shutil.which, names) if p), None) or next(
        (p for p in places if Path(p).exists()), None
    )


def install_browser() -> str | None:
    """Debian's chromium where this user may install it; None where not."""
    if browser():
        return browser()
    if shutil.which('apt-get') and hasattr(os, 'geteuid') and os.geteuid() == 0:
        say('Installing chromium for the browser tests (about 0.1 GB to download).')
        env = {**os.environ, 'DEBIAN_FRONTEND': 'noninteractive'}
        for command in (['apt-get', 'update', '-qq'], ['apt-get', 'install', '-y', '-qq', 'chromium']):
            subprocess.run(command, env=env, stdout=subprocess.DEVNULL)
    return browser()


class Checks:
    """All the checks. A stage says what it has to run; none of them ends the run."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        self.options, self.folder, self.env, self.n = options, folder, environment(folder), 0
        self.results: list[tuple[str, Result]] = []
        self.workers = options.jobs or min(cores(), 8)
        self.known = known_times()

    # the tools

    def add(self, name: str, result: Result) -> None:
        self.results.append((name, result))
        tell(name, result)

    def script(self, name: str) -> str:
        found = shutil.which(name, path=str(PYTHON.parent)) or shutil.which(name)
        if not found:
            raise Trouble(f'{name} is not installed in .venv; run "python lab.py test" without --no-install.')
        return found

    def chosen(self, items: list[Item], what: str) -> list[Item]:
        """Those that --match leaves. A stage with nothing to run has failed, unless --match did it."""
        if not items:
            self.add(what, Result(failed=1, text=f'nothing to run: no {what} was found'))
        return [i for i in items if self.options.match in i.name]

    def many(self, items: list[Item], workers: int | None = None) -> None:
        """Run items, several at a time, the longest first: what comes last should not be waited for."""
        long = lambda item: -self.known.get(item.name, budget(item.name))
        with ThreadPoolExecutor(workers or self.workers) as pool:
            go = lambda item: self.add(item.name, run(item, self.env, self.options.patience))
            running = [pool.submit(go, item) for item in sorted(items, key=long)]
            try:
                for r in running:
                    r.result()
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list(RUNNING):
                    process.stop()
                raise

    def pytest(self, name: str, *arguments: str, **env: str) -> Item:
        """An item that counts tests."""
        self.n += 1
        report = self.folder / f'{self.n}.xml'
        quiet = ('-q', '-rsfE', '-p', 'no:cacheprovider', '-W', 'ignore::pytest.PytestAssertRewriteWarning')
        return Item(name, ['-m', 'pytest', *quiet, f'--junitxml={report}', *arguments], report, env)

    def notebook(self, path: str) -> Item:
        """An item that runs a notebook's tests."""
        return Item(path, [self.script('nbdev-test'), path, '--n-workers', '0'])

    def files(self, folder: str, pattern: str) -> list[str]:
        found = (p.relative_to(ROOT) for p in sorted((ROOT / folder).rglob(pattern)))
        return [p.as_posix() for p in found if not any(part.startswith(('.', '_')) for part in p.parts)]

    def copy(self, name: str) -> Path:
        """Notebooks and package in a folder of their own, where they may be changed."""
        to = self.folder / name
        for part in ('nbs', 'tutorials', 'maskedlab'):
            if (ROOT / part).exists():
                shutil.copytree(
                    ROOT / part, to / part, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
                )
        shutil.copy(ROOT / 'pyproject.toml', to)
        return to

    def tool(self, folder: Path, *command: str) -> str:
        """Run a tool of nbdev in a copy; what it printed where it failed, else nothing."""
        done = subprocess.run(
            command, cwd=folder, env={**self.env, 'PYTHONPATH': str(folder)}, capture_output=True, text=True
        )
        return '' if done.returncode == 0 else f'{" ".join(command)} failed:\n{done.stdout}{done.stderr}'

    # the stages

    def export(self) -> None:
        """A fresh nbdev-export must give the very files of the package; all others are listed."""
        start, copy = time.monotonic(), self.copy('export')
        kept = lambda p: any(fnmatch.fnmatch(p, pattern) for pattern in HAND_KEPT)
        package = lambda root: {
            p.relative_to(root / 'maskedlab').as_posix(): p
            for p in (root / 'maskedlab').rglob('*')
            if p.is_file() and '__pycache__' not in p.parts
        }
        for path, file in package(copy).items():
            if file.suffix == '.py' and not kept(path):
                file.unlink()
        trouble = [self.tool(copy, self.script('nbdev-export'))]
        ours, fresh = package(ROOT), package(copy)
        for path in sorted(ours.keys() | fresh.keys()):
            if path not in fresh or (path in ours and not kept(path) and not path.endswith('.py')):
                trouble.append(
                    f'maskedlab/{path} comes from no notebook and is not among the hand-kept files'
                )
            elif path not in ours:
                trouble.append(f'maskedlab/{path} is missing: run nbdev-export')
            elif not kept(path) and ours[path].read_bytes() != fresh[path].read_bytes():
                trouble.append(f'maskedlab/{path} differs from its notebook: run nbdev-export')
        if (copy / 'pyproject.toml').read_bytes() != (ROOT / 'pyproject.toml').read_bytes():
            trouble.append('nbdev-export changes pyproject.toml')
        text = '\n'.join(t for t in trouble if t)
        self.add(
            'a fresh nbdev-export changes nothing',
            Result(int(not text), int(bool(text)), 0, time.monotonic() - start, text),
        )
        folders: dict[str, list[str]] = {}
        for path in sorted(p for p in ours if kept(p) and (p == 'py.typed' or ours[p].stat().st_size)):
            folders.setdefault(path.rpartition('/')[0].partition('/')[0], []).append(path)
        few = lambda folder, paths: (
            paths if len(paths) < 9 or not folder else [f'{folder}/ ({len(paths)} files)']
        )
        listed = [text for folder, paths in folders.items() for text in few(folder, paths)]
        say('                hand-kept: ' + ', '.join(listed))

    def clean(self) -> None:
        """nbdev-clean must have nothing to do."""
        start, copy = time.monotonic(), self.copy('clean')
        trouble = [
            self.tool(copy, self.script('nbdev-clean'), '--fname', str(copy / part))
            for part in ('nbs', 'tutorials')
            if (copy / part).exists()
        ]
        for path in self.files('nbs', '*.ipynb') + self.files('tutorials', '*.ipynb'):
            if (copy / path).read_bytes() != (ROOT / path).read_bytes():
                trouble.append(f'{path} is not clean: run nbdev-clean --fname {path}')
        text = '\n'.join(t for t in trouble if t)
        self.add(
            'nbdev-clean changes nothing',
            Result(int(not text), int(bool(text)), 0, time.monotonic() - start, text),
        )

    def lint(self) -> list[Item]:
        """Style and types."""
        paths = [p for p in ('maskedlab', 'tests', 'tools', 'bench', 'lab.py') if (ROOT / p).exists()]
        ruff = Item('ruff', ['-m', 'ruff', 'check', '--no-cache', *paths])
        mypy = Item('mypy', ['-m', 'mypy', '--no-error-summary', 'maskedlab'])
        return self.chosen([ruff, mypy], 'checker')

    def nbs(self) -> list[Item]:
        """The notebooks that the package is made of."""
        return self.chosen([self.notebook(p) for p in self.files('nbs', '*.ipynb')], 'notebook in nbs')

    def package(self) -> list[Item]:
        """pytest on the package."""
        paths = [p for p in self.files('tests', 'test_*.py') if not p.startswith('tests/browser/')]
        measure = ('--cov=maskedlab', '--cov-report=') if self.options.coverage else ()
        file = lambda n: {'COVERAGE_FILE': str(self.folder / f'.coverage.{n}')} if measure else {}
        return self.chosen([self.pytest(p, p, *measure, **file(n)) for n, p in enumerate(paths)], 'test file')

    def tutorials(self) -> list[Item]:
        """The course, as a learner runs it, on the test budget."""
        paths = self.files('tutorials', '*.ipynb')
        return self.chosen(
            [self.pytest(p, '--nbval-lax', '--nbval-current-env', p) for p in paths], 'tutorial'
        )

    def browser(self) -> list[Item]:
        """The pages in a real browser; what measures times comes at the end, by itself."""
        if not self.browser_there():
            return []
        files = self.files('tests/browser', 'test_*.py')
        timed = [self.pytest(TIMED, 'tests/browser', '-m', 'timed')] if files else []
        return self.chosen([self.pytest(p, p, '-m', 'not timed') for p in files] + timed, 'browser test')

    def coverage(self) -> None:
        """What the tests of the package have run of it."""
        env = {**self.env, 'COVERAGE_FILE': str(self.folder / '.coverage')}
        for words in (['combine', str(self.folder)], ['report', '--skip-covered']):
            done = subprocess.run(
                [str(PYTHON), '-m', 'coverage', *words], cwd=ROOT, env=env, capture_output=True, text=True
            )
        say('\n'.join('                ' + line for line in done.stdout.strip().splitlines()))

    def browser_there(self) -> bool:
        if install_browser():
            return True
        needed = os.environ.get('CI', '').lower() in ('true', '1')
        say(
            'No Chromium or Chrome was found and this user may not install one: the browser tests are '
            'left out until you install chromium.'
        )
        self.add(
            'browser tests',
            Result(failed=int(needed), skipped=int(not needed), text='CI must have a browser'),
        )
        return False

    # what is run

    def all(self) -> None:
        """Every stage: the files of all as one queue, then what measures times, by itself."""
        wanted = [s for s in STAGES if s in (self.options.only or STAGES)]
        files: list[Item] = []
        for stage in wanted:
            say(f'\n{stage}: {(getattr(Checks, stage).__doc__ or "").strip()}')
            files += self.attempt(stage)
        self.many([item for item in files if item.name != TIMED])
        self.many([item for item in files if item.name == TIMED])
        if 'package' in wanted and self.options.coverage:
            self.coverage()

    def attempt(self, stage: str) -> list[Item]:
        """What a stage has to run; its trouble is a failure, and the next one comes."""
        try:
            return getattr(self, stage)() or []
        except (Trouble, OSError) as e:
            self.add(stage, Result(failed=1, text=str(e)))
            return []

    def of(self, names: list[str]) -> None:
        """What concerns some methods: their notebooks and tests, and their cases in what holds for all."""
        self.attempt('export')
        paths, tutorials = concerns(names)
        recipes = [word for name in names for word in ('--recipe', name) if name in catalogue()['RECIPES']]
        items = [self.notebook(p) if p.endswith('.ipynb') else self.pytest(p, p) for p in paths]
        if recipes:
            items.append(self.pytest('tests/test_contract.py', 'tests/test_contract.py', *recipes))
        self.many(items)
        if tutorials:
            say('\nNot run here, and it names the method: ' + ', '.join(tutorials))

    def quick(self) -> None:
        """The tests marked `quick`, the first tutorial, and one picture of the explorer."""
        tests = self.pytest('tests marked quick', 'tests', '--ignore=tests/browser', '-m', 'quick')
        self.many([tests, *self.tutorials()[:1]])
        if not self.browser_there():
            return
        pictures = ROOT / 'runs' / 'quick'
        pictures.mkdir(parents=True, exist_ok=True)
        begin = time.time() - 1
        env = {'LAB_PICTURES': str(pictures)}
        self.many([self.pytest('browser tests marked quick', 'tests/browser', '-m', 'quick', **env)])
        new = [p for p in pictures.glob('*.png') if p.stat().st_mtime >= begin]
        text = f'no picture was saved in {pictures}'
        self.add('a picture of the explorer', Result(passed=int(bool(new)), failed=int(not new), text=text))
        for p in new:
            say(f'                {p}')


STAGES = ('export', 'clean', 'lint', 'nbs', 'package', 'tutorials', 'browser')


def known_times() -> dict[str, float]:
    """Seconds of each file when they were last written down."""
    try:
        return json.loads((ROOT / TIMES).read_text(encoding='utf-8'))['numbers']['seconds']
    except (OSError, ValueError, KeyError):
        return {}


def catalogue() -> dict[str, dict[str, tuple]]:
    """The table of methods; its module imports nothing."""
    return runpy.run_path(str(ROOT / 'maskedlab' / 'contract' / 'catalogue.py'))


def concerns(names: list[str]) -> tuple[list[str], list[str]]:
    """Notebooks and test files that are about some methods, and tutorials that name them."""
    methods = {**catalogue()['STAGES'], **catalogue()['RECIPES']}
    path = lambda p: p.relative_to(ROOT).as_posix()
    found: dict[str, None] = {}
    tutorials: dict[str, None] = {}
    for name in names:
        if name not in methods:
            near = difflib.get_close_matches(name, methods, 3, 0.5)
            hint = f'near it: {", ".join(near)}' if near else f'there are: {", ".join(methods)}'
            raise Trouble(f'there is no method {name!r}; {hint}.')
        where, modality, *formats = methods[name]
        modules = [m.split(':')[0].removeprefix('maskedlab.') for m in (where, *formats) if m]
        for file in sorted((ROOT / 'nbs').rglob('*.ipynb')):
            exported = re.search(r'#\| *default_exp ([\w.]+)', file.read_text(encoding='utf-8'))
            if exported and (exported[1] in modules or re.fullmatch(rf'claims\.(\w+\.)?{name}', exported[1])):
                found[path(file)] = None
        own = sorted((ROOT / 'tests').rglob(f'test_{name}.py')) or sorted(
            (ROOT / 'tests').rglob(f'test_{modality}.py')
        )
        found |= dict.fromkeys(map(path, own))
        word = re.compile(rf"""['"]{name}['"]|{re.escape(where.split(':')[0])}\b""")
        texts = {
            p: p.read_text(encoding='utf-8').replace('\\"', '"')
            for p in sorted((ROOT / 'tutorials').glob('*.ipynb'))
        }
        tutorials |= dict.fromkeys(path(p) for p, text in texts.items() if word.search(text))
    return list(found), list(tutorials)


def test(options: argparse.Namespace) -> int:
    """Run what was asked for, and count at the end."""
    start = time.monotonic()
    if options.names:
        concerns(options.names)  # an unknown name is said before anything starts
    with tempfile.TemporaryDirectory(prefix='maskedlab-') as folder:
        checks = Checks(options, Path(folder))
        if sys.platform == 'linux' and not options.cold:
            Warm.start(checks.env)
        try:
            if options.command == 'quick':
                checks.quick()
            elif options.names:
                checks.of(options.names)
            else:
                checks.all()
        finally:
            Warm.end()
    return close(checks.results, time.monotonic() - start, options)


def close(results: list[tuple[str, Result]], seconds: float, options: argparse.Namespace) -> int:
    """The slowest, what failed, the total time and, as the last line, the count."""
    total = [sum(getattr(r, k) for _, r in results) for k in ('passed', 'failed', 'skipped')]
    bad = [name for name, r in results if r.failed]
    if not total[0] and not total[1]:
        bad, total[1] = ['nothing was run'], 1
    slowest = sorted(results, key=lambda each: -each[1].seconds)[:10]
    if len(results) > 1:
        say('\nThe slowest: ' + ', '.join(f'{name} {r.seconds:.0f} s' for name, r in slowest))
    for name, r in results:
        if late(name, r):
            say(f'Warning: {name} took {r.seconds:.0f} s,{late(name, r)[1:]}.')
    if options.times:
        write_times(Path(options.times), results, seconds)
    for name, r in results:
        if r.failed:  # said again at the end: a log is often kept, or shown, by its last lines alone
            say('\n' + '\n'.join([f'{name}:', *('    ' + s for s in r.text.strip().splitlines()[-15:])]))
    say('\n' + ('Failed: ' + ', '.join(bad) if bad else 'All is well.'))
    if not bad and options.freeze and not (options.only or options.match or options.names):
        freeze()
    say(f'{int(seconds // 60)} min {seconds % 60:.0f} s')
    say('{} passed, {} failed, {} skipped'.format(*total))
    return int(bool(bad))


def write_times(path: Path, results: list[tuple[str, Result]], seconds: float) -> None:
    """What each file and each test took, for `maskedlab bench tests`."""
    files = {
        name: dict(
            seconds=r.seconds,
            processor=r.processor,
            budget=budget(name),
            load=r.load,
            passed=r.passed,
            failed=r.failed,
            cases=r.cases,
            used=r.used,
        )
        for name, r in results
    }
    path.write_text(json.dumps(dict(seconds=seconds, cores=cores(), files=files), indent=1), encoding='utf-8')


def freeze() -> None:
    """Write down the versions with which the tests have just passed; torch stays free."""
    lines = subprocess.run(
        [str(PYTHON), '-m', 'pip', 'list', '--format=freeze', '--exclude-editable'],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    ours = ('torch', 'nvidia', 'cuda', 'triton')
    head = ['# The versions with which the tests last passed (written by `python lab.py test --freeze`).']
    head += [f'# {line}' for line in lines if line.startswith('torch')]
    free = ('pip==', 'setuptools==', 'wheel==', 'maskedlab==', *ours)
    (ROOT / 'constraints.txt').write_text(
        '\n'.join(head + [line for line in lines if not line.startswith(free)]) + '\n'
    )
    say('constraints.txt was written.')


# ------------------------------------------------------------------------------------------------------- main


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog='lab.py', description='maskedlab: JupyterLab on the first tutorial, or the checks.'
    )
    p.add_argument(
        'command',
        nargs='?',
        default='lab',
        choices=('lab', 'test', 'quick', 'download'),
        help='lab (default), test, quick: the checks of three minutes, or download: wheels for --find-links',
    )
    p.add_argument(
        'names',
        nargs='*',
        metavar='NAME',
        help='of test: methods, such as mae, to run what concerns these; of download: the folder',
    )
    i = p.add_argument_group('installing')
    i.add_argument('--cpu', action='store_true', help='the CPU build of torch: far smaller on Linux')
    i.add_argument('--torch-index', metavar='URL', help='fetch torch and torchvision from this index')
    i.add_argument('--find-links', metavar='FOLDER', help='install from these wheels alone, say on a stick')
    i.add_argument('--tests', action='store_true', help='of download: also what the tests need')
    i.add_argument('--no-install', action='store_true', help='use .venv as it is')
    i.add_argument('--install-only', action='store_true', help='install and stop')
    j = p.add_argument_group('lab')
    j.add_argument('--port', type=int, help='default: the first free one from 8888 on')
    j.add_argument('--no-browser', action='store_true', help='only print the address')
    t = p.add_argument_group('test')
    t.add_argument('--only', nargs='+', choices=STAGES, metavar='STAGE', help=f'some of: {", ".join(STAGES)}')
    t.add_argument('--match', default='', metavar='TEXT', help='only files with this text in their path')
    t.add_argument(
        '--patience',
        type=float,
        default=1,
        metavar='N',
        help=f'multiply the {HANG} s after which a file is ended',
    )
    t.add_argument(
        '--jobs', type=int, metavar='N', help='files at a time; default: one for each core, at most 8'
    )
    t.add_argument('--cold', action='store_true', help='a new Python for each file, where else one is forked')
    t.add_argument('--coverage', action='store_true', help='say what the tests have run of the package')
    t.add_argument('--times', metavar='FILE', help='write what each file and each test took (JSON)')
    t.add_argument('--freeze', action='store_true', help='write constraints.txt when all passes')
    return p


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if sys.version_info < OLDEST_PYTHON:
        other = newer_python()
        if other:
            return subprocess.call([other, str(Path(__file__).resolve()), *arguments])
        say(
            f'maskedlab needs Python 3.11 or newer and this is {sys.version.split()[0]}: install one and '
            'run it with this file.'
        )
        return 2
    options = parser().parse_args(arguments)
    try:
        if options.command == 'download':
            if len(options.names) != 1:
                raise Trouble('name one folder: python lab.py download FOLDER.')
            download(options)
            return 0
        if options.names and options.command != 'test':
            raise Trouble(f'{options.names[0]!r} is a word too many: methods are named after "test".')
        if options.no_install:
            if not PYTHON.exists():
                raise Trouble('there is no .venv yet; run this command without --no-install.')
        else:
            if options.find_links:
                options.find_links = str(Path(options.find_links).resolve())
            install('lab' if options.command == 'lab' else 'test', options)
        if options.install_only:
            return 0
        return lab(options) if options.command == 'lab' else test(options)
    except Trouble as e:
        say(f'lab.py: {e}')
        return 2
    except KeyboardInterrupt:
        say('\nStopped.')
        return 130


if __name__ == '__main__':
    sys.exit(main())
