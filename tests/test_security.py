"""Who may reach what: each line of docs/threat_model.md, and servers that run."""

import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import maskedlab as ml
from maskedlab.show import gate as gates
from maskedlab.show.explorer import menus
from maskedlab.show.explorer.doors import DOORS, answer
from maskedlab.show.explorer.page import Page

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / 'docs' / 'threat_model.md'
pytestmark = pytest.mark.quick

# A configuration that opens every door it knows.
OPEN = """c = get_config()
c.IdentityProvider.token = c.ServerApp.token = c.ServerApp.password = ''
c.ServerApp.ip = c.Voila.ip = '0.0.0.0'
c.ServerApp.allow_remote_access = c.ServerApp.disable_check_xsrf = True
c.ServerApp.allow_unauthenticated_access = True
c.ServerApp.allow_origin = '*'
c.ServerApp.base_url = c.Voila.base_url = '/elsewhere/'
c.ServerApp.tornado_settings = c.Voila.tornado_settings = {'headers': {'Access-Control-Allow-Origin': '*'}}
"""


def test_every_line_of_the_threat_model_is_a_test():
    lines = [line for line in MODEL.read_text(encoding='utf-8').splitlines() if line.startswith('| ')][1:]
    named = [re.search(r'`(test_\w+)` \|$', line) for line in lines]
    assert len(lines) > 12 and all(named)
    missing = {m[1] for m in named} - set(globals())
    assert not missing


# ----------------------------------------------------------------------------------------------- two servers


class Server:
    """A server that was started as a reader starts it."""

    def __init__(self, folder, *command):
        folder.mkdir()
        config = folder / 'config'
        config.mkdir()
        for name in ('jupyter_server_config.py', 'jupyter_config.py', 'voila.py'):
            (config / name).write_text(OPEN)
        for name in ('voila.py', 'tornado.py', 'json.py'):      # of a folder full of downloads
            (folder / name).write_text(OPEN)
        env = {**os.environ, 'PYTHONPATH': str(ROOT), 'HOME': str(folder), 'JUPYTER_CONFIG_DIR': str(config),
               'JUPYTER_RUNTIME_DIR': str(folder / 'run'), 'IPYTHONDIR': str(folder / 'ipython'),
               'OMP_NUM_THREADS': '1'}
        env.pop('JUPYTER_TOKEN', None)
        self.log = (folder / 'log').open('w')
        self.process = subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.PIPE,
                                        stderr=self.log, text=True)
        said = ''
        while not (found := re.search(r'http://127\.0\.0\.1:(\d+)/\S*\?token=(\w+)', said)):
            line = self.process.stdout.readline()
            assert line, (folder / 'log').read_text()
            said += line
        self.port, self.token = int(found[1]), found[2]
        self.page = '/' if '/lab' not in found[0] else '/lab'
        for _ in range(300):
            with socket.socket() as s:
                if not s.connect_ex(('127.0.0.1', self.port)):
                    break
            time.sleep(.1)

    def ask(self, path=None, token=None, host=None, **headers):
        """Status and text of a page."""
        c = http.client.HTTPConnection('127.0.0.1', self.port, timeout=60)
        path = self.page if path is None else path
        headers = {k.replace('_', '-'): v for k, v in headers.items()}
        c.request('GET', path + ('' if token is None else f'?token={token}'),
                  headers={'Host': host or f'127.0.0.1:{self.port}', **headers})
        got = c.getresponse()
        text = got.read().decode('utf-8', 'replace')
        c.close()
        self.cookies = [x for k, x in got.getheaders() if k == 'Set-Cookie']
        return got.status, text

    def knock(self, path, token=None, **headers):
        """The status with which a websocket is answered; 101 where it is opened."""
        upgrade = dict(Upgrade='websocket', Connection='Upgrade', Sec_WebSocket_Version='13',
                       Sec_WebSocket_Key='AAAAAAAAAAAAAAAAAAAAAA==')
        return self.ask(path, token, **{**upgrade, **headers})[0]

    def end(self):
        self.process.send_signal(signal.SIGTERM)

    def close(self):
        self.process.wait(20)
        self.log.close()


@pytest.fixture(scope='module')
def servers(tmp_path_factory):
    """The page of `maskedlab explore` and the lab, started once, under a configuration that opens doors."""
    pytest.importorskip('voila')
    pytest.importorskip('jupyterlab')
    # a page of one short cell: what a page shows is told elsewhere
    code = ("import maskedlab.show.explorer.widget as w; made = w.notebook_of('mae'); "
            "made['cells'][0]['source'] = 'import os'; w.notebook_of = lambda _: made; "
            "w.serve('mae', port=0, open_browser=False)")
    import lab
    start = f"import sys, lab; from pathlib import Path; lab.PYTHON = Path({sys.executable!r}); " \
            "sys.exit(lab.main(['--no-install', '--no-browser']))"
    folder = tmp_path_factory.mktemp('servers')
    assert lab.ROOT == ROOT
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(Server, folder / name, sys.executable, '-P', '-c', words)
                for name, words in (('page', code), ('lab', start))]
        both = SimpleNamespace(page=both[0].result(), lab=both[1].result())
    yield both
    for s in (both.page, both.lab):
        s.end()
    for s in (both.page, both.lab):
        s.close()


@pytest.fixture(params=['page', 'lab'])
def server(servers, request):
    return getattr(servers, request.param)


def test_without_the_token_nothing_is_served(server):
    paths = [server.page, '/', '/voila/static/voila.js', '/static/lab/index.html', '/api/contents',
             '/api/kernels', '/api/status', '/login', '/files/README.md']
    for path in paths:
        for token in (None, '', 'wrong', server.token[:-1]):
            assert server.ask(path, token)[0] == 403, (path, token)
    assert server.knock('/api/kernels/0-0-0-0-0/channels') == 403
    assert 'token' in server.ask()[1] and server.token not in server.ask()[1]
    assert server.ask(Cookie=f'maskedlab-{server.port}=wrong')[0] == 403


def test_the_token_lets_in_and_is_kept_by_the_browser(servers):
    lab = servers.lab
    status, text = lab.ask(token=lab.token)
    assert status == 200 and 'JupyterLab' in text
    mine = [c for c in lab.cookies if c.startswith('maskedlab-')]
    assert mine and 'HttpOnly' in mine[0] and 'SameSite' in mine[0]
    assert lab.ask('/api/contents', Cookie='; '.join(c.partition(';')[0] for c in lab.cookies))[0] == 200
    assert lab.ask('/api/contents', Authorization=f'token {lab.token}')[0] == 200


@pytest.mark.skipif(not Path('/proc/self/cmdline').exists(), reason='reads command lines in /proc')
def test_the_token_stands_in_no_command_line(servers):
    lines = [p.read_bytes() for p in Path('/proc').glob('[0-9]*/cmdline') if os.access(p, os.R_OK)]
    for s in (servers.page, servers.lab):
        assert any(str(s.port).encode() in line for line in lines)
        assert not any(s.token.encode() in line for line in lines)
    assert len({servers.page.token, servers.lab.token}) == 2 and len(servers.page.token) >= 48


@pytest.mark.skipif(not Path('/proc/net/tcp').exists(), reason='reads addresses in /proc')
def test_servers_listen_on_this_machine_alone(server):
    rows = [line.split()[1:4] for name in ('tcp', 'tcp6') if Path('/proc/net', name).exists()
            for line in Path('/proc/net', name).read_text().splitlines()[1:]]
    heard = [at for at, _, state in rows if state == '0A' and at.endswith(f':{server.port:04X}')]
    assert heard == [f'0100007F:{server.port:04X}']


def test_a_foreign_host_is_not_answered(server):
    for host in ('rebind.example', f'rebind.example:{server.port}', '127.0.0.1',
                 f'127.0.0.1.nip.io:{server.port}', f'192.168.0.1:{server.port}'):
        status, text = server.ask(token=server.token, host=host)
        assert status == 403 and '127.0.0.1' in text, host
        assert server.knock('/api/kernels/0-0-0-0-0/channels', server.token, Host=host) == 403


def test_a_foreign_page_is_not_answered(server):
    for origin in ('http://rebind.example', f'http://127.0.0.1:{server.port + 1}', 'null', ''):
        assert server.ask('/api/status', server.token, Origin=origin)[0] == 403, origin
        assert server.knock('/api/kernels/0-0-0-0-0/channels', server.token, Origin=origin) == 403, origin
    for site in ('cross-site', 'same-site'):
        for to in ('iframe', 'image', 'script', 'empty'):
            assert server.ask(token=server.token, Sec_Fetch_Site=site, Sec_Fetch_Dest=to)[0] == 403
    own = f'http://127.0.0.1:{server.port}'
    assert server.ask('/api/status', server.token, Origin=own)[0] != 403 or server.page == '/'


def test_no_configuration_opens_a_door(server):
    gate = gates.Gate(server.token, server.port)
    assert gates.open_to(gate) == []
    server.ask('/api/status', server.token)
    assert server.ask('/elsewhere/api/status')[0] == 403


def test_a_server_that_does_not_hold_is_ended(monkeypatch, capsys):
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    class Open(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(403 if 'wrong' in self.path else 200)
            self.end_headers()

        def log_message(self, *_):
            "Said nowhere."

    open_ = ThreadingHTTPServer(('127.0.0.1', 0), Open)
    Thread(target=open_.serve_forever, daemon=True).start()
    ended = []
    monkeypatch.setattr(gates.os, '_exit', lambda code: (ended.append(code), sys.exit())[0])
    with pytest.raises(SystemExit):
        gates._watch(gates.Gate('s' * 48, open_.server_address[1]), seconds=5)
    open_.shutdown()
    said = capsys.readouterr().err
    assert ended == [2] and 'no token' in said and 'foreign Host' in said and 'wrong token' not in said


def test_a_gate_needs_a_token(monkeypatch):
    for token in ('', 'short'):
        monkeypatch.setenv('JUPYTER_TOKEN', token)
        with pytest.raises(SystemExit, match='token'):
            gates.serve_behind(['page', '8866', 'none.ipynb'])


def kernel_of(text):
    return re.search(r'"kernelId": "([\w-]+)"', text)[1]


def test_one_kernel_and_an_expired_page_says_so(servers):
    page = servers.page
    first = kernel_of(page.ask(token=page.token)[1])
    assert page.ask(f'/api/kernels/{first}', page.token)[0] == 200
    second = kernel_of(page.ask(token=page.token)[1])
    assert page.ask(f'/api/kernels/{second}', page.token)[0] == 200
    assert page.ask(f'/api/kernels/{first}', page.token)[0] == 404      # what the page asks, see explorer.js
    status, text = page.ask(Cookie=f'maskedlab-{page.port}={secrets.token_hex(24)}')      # of an older server
    assert status == 403 and 'expired' in text and 'printed last' in text
    script = (ROOT / 'maskedlab' / 'show' / 'static' / 'explorer.js').read_text(encoding='utf-8')
    assert 'This page has expired' in script and 'api/kernels/' in script


def test_the_page_executes_nothing(servers, tmp_path):
    websocket = pytest.importorskip('websocket')
    page, mark = servers.page, tmp_path / 'mark'
    kernel = kernel_of(page.ask(token=page.token)[1])
    url = f'ws://127.0.0.1:{page.port}/api/kernels/{kernel}/channels?token={page.token}'
    own = f'http://127.0.0.1:{page.port}'
    line = websocket.create_connection(url, origin=own, timeout=10)
    message = lambda kind, **content: json.dumps(dict(
        header=dict(msg_id=secrets.token_hex(8), username='', session='s', msg_type=kind, version='5.3',
                    date=''),
        parent_header={}, metadata={}, content=content, channel='shell'))
    code = f'open({str(mark)!r}, "w").write("run")'
    line.send(message('execute_request', code=code, silent=False, store_history=False, user_expressions={},
                      allow_stdin=False))
    line.send(message('kernel_info_request'))
    said = ''
    while said != 'kernel_info_reply':      # it listens, and has run nothing
        said = json.loads(line.recv())['msg_type']
    line.close()
    assert not mark.exists()


# ------------------------------------------------------------------------------------------- messages, files


@pytest.fixture(scope='module')
def page():
    return Page('bert_mlm')


@pytest.fixture
def evil(tmp_path):
    """A file that leaves a mark when it is run."""
    mark = tmp_path / 'mark'
    file = tmp_path / 'evil.py'
    file.write_text(f'import pathlib\npathlib.Path({str(mark)!r}).touch()\n'
                    'from maskedlab.recipes.text.bert_mlm import BertMLM as Evil\n')
    yield file
    assert not mark.exists(), 'the file was run'


def test_a_message_names_no_code(page, evil, monkeypatch):
    monkeypatch.chdir(evil.parent)
    good = asdict(page.state)
    for name in (f'{evil}:Evil', 'evil.py:Evil', 'maskedlab.recipes.text.bert_mlm:BertMLM'):
        for kind in DOORS:
            for where in ('recipe', 'set', 'strategy') if kind == 'draw' else ('recipe',):
                bad = {**good, where: name}
                message = dict(kind=kind, state=bad, recipe=bad['recipe'], set=bad['set'], name='a.txt')
                reply, _ = answer(page, message, [b'a text'])
                if where == 'recipe':
                    assert reply['kind'] == 'trouble' and len(reply['words']) <= 200
        fields = {'ratio': name, 'order': name}
        reply, _ = answer(page, dict(kind='draw', state={**good, 'fields': fields}))
        assert reply['kind'] == 'trouble'
    assert answer(page, dict(kind='open', seq=2))[0]['kind'] == 'spec', 'a refused state stays behind'
    assert answer(page, dict(kind='draw', seq=3, state=good))[0]['kind'] == 'drawn'


def test_an_odd_message_is_answered_in_a_sentence(page):
    good = asdict(page.state)
    for odd in (None, [], {}, ['mae'], 'x' * 10_000, -1, 10 ** 30, float('nan')):
        for key in good:
            reply, _ = answer(page, dict(kind='draw', state={**good, key: odd}))
            assert len(reply.get('words', '')) <= 220, key
        for part in (dict(name=odd), dict(part=odd), dict(parts=odd)):
            message = dict(kind='file', recipe=good['recipe'], name='a.txt') | part
            assert len(answer(page, message, [b'x'])[0].get('words', '')) <= 220, part
        half = dict(kind='draw'), dict(kind='draw', state=odd), dict(kind='file')
        for message in ({}, dict(kind=odd), *half):
            assert answer(page, message)[0]['kind'] == 'trouble'
    assert answer(page, dict(kind='draw', seq=3, state=good))[0]['kind'] == 'drawn'


def test_what_the_caller_passed_is_still_taken(tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text('from maskedlab.recipes.text.bert_mlm import BertMLM as Mine\n')
    mine = Page(f'{file}:Mine')
    assert answer(mine, dict(kind='open', recipe=f'{file}:Mine'))[0]['kind'] == 'spec'
    assert answer(mine, dict(kind='draw', state=asdict(mine.state)))[0]['kind'] == 'drawn'


def upload(page, name, data, size=2 ** 20):
    parts = max(1, -(-len(data) // size))
    for i in range(parts):
        reply, _ = answer(page, dict(kind='file', recipe='bert_mlm', name=name, part=i, parts=parts),
                          [data[i * size:(i + 1) * size]])
        if reply['kind'] == 'trouble':
            break
    return reply


def test_uploads_have_limits(page):
    words = b'a word of many '
    reply = upload(page, 'large.txt', words * 200_000)      # 3 MB, where 1 is allowed
    assert reply['kind'] == 'trouble' and 'more than 1 MB' in reply['words'] and not page.arriving
    assert upload(page, 'large.txt', words * 200_000, size=1000)['kind'] == 'trouble' and not page.arriving
    late = answer(page, dict(kind='file', recipe='bert_mlm', name='x', part=3, parts=9), [b'x'])[0]
    assert late['kind'] == 'trouble'
    for i in range(12):
        assert upload(page, f'{i}.txt', words)['kind'] == 'filed'
        shown = asdict(replace(page.state, set=f'{i}.txt', index=0))
        assert answer(page, dict(kind='draw', state=shown))[0]['kind'] == 'drawn'
    kept = page.menus.files
    assert list(kept) == [f'{i}.txt' for i in range(12 - menus.KEPT_FILES, 12)]
    shown = {at[2] for at in page.menus.cache if at[0] in ('sample', 'units')}
    files = sum(name.endswith('.txt') for name in shown)
    assert files <= menus.KEPT_FILES, 'a dropped file stays in the cache'
    gone = answer(page, dict(kind='draw', state=asdict(replace(page.state, set='0.txt', index=0))))[0]
    assert gone['kind'] == 'trouble' and 'no samples' in gone['words']


def test_the_sum_of_uploads_is_limited(monkeypatch):
    monkeypatch.setattr(menus, 'KEPT_MB', .01)
    samples = menus.Samples('bert_mlm')
    for i in range(5):
        samples.add('bert_mlm', f'{i}.txt', b'word ' * 700)      # 3.5 kB each, 10 together
    assert list(samples.files) == ['3.txt', '4.txt']


def test_limits_are_stated_in_the_help(capsys):
    from maskedlab.cli import main
    with pytest.raises(SystemExit):
        main(['explore', '--help'])
    said = ' '.join(capsys.readouterr().out.split())
    from maskedlab.show.views.table import VIEWS
    most = {v.open_with['most'] for v in VIEWS.values() if v.open_with}
    for word in (*(f'{m} MB' for m in most), f'newest {menus.KEPT_FILES} ', f'{menus.KEPT_MB} MB',
                 'one kernel', 'token'):
        assert word in said, word


def test_a_files_name_leads_nowhere(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'tmp').mkdir()
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'tmp'))
    picture = Page('mae')
    for name in ('../../up.png', '/abs.png', '..\\up.png', 'a/../b.png', '..', '', '.', 'x\0y.png',
                 '~/x.png'):
        reply, _ = answer(picture, dict(kind='file', recipe='mae', name=name), [b'no picture'])
        assert reply['kind'] == 'trouble' and str(tmp_path) not in reply['words'], name
    assert [p.name for p in tmp_path.rglob('*')] == ['tmp']
    label = page.menus.sets()[0]
    assert 'another name' in upload(page, label, b'a text')['words'] and label not in page.menus.files


def test_the_page_sets_text_alone():
    for file in (ROOT / 'maskedlab' / 'show' / 'static').glob('*.js'):
        text = file.read_text(encoding='utf-8')
        found = re.findall(r'innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function',
                           text)
        assert not found, file.name


class Marks:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), 'w')


def test_a_checkpoint_runs_no_code(tmp_path):
    mark = tmp_path / 'mark'
    for name in ('weights.pth', 'pytorch_model.bin', 'weights.pt'):
        torch.save({'model': {'w': Marks(mark)}}, tmp_path / name)
        with pytest.raises((ValueError, OSError)) as told:
            ml.load_pretrained(tmp_path / name)
        assert len(str(told.value)) <= 300
        assert not mark.exists()


def test_a_run_folder_runs_no_code(evil, monkeypatch):
    monkeypatch.chdir(evil.parent)
    about = dict(config={}, data='text', steps=1, batch=2, seed=0, version=ml.__version__)
    for name in (f'{evil}:Evil', 'evil.py:Evil'):
        run = evil.parent / 'run'
        run.mkdir(exist_ok=True)
        (run / 'run.json').write_text(json.dumps({**about, 'recipe': name}))
        with pytest.raises((ValueError, OSError)):
            ml.Trainer.resume(run)
