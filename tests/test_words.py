"""Wherever a method is named: a name, a run, a checkpoint, a class in a file, a repository of the Hub."""
import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image

import maskedlab as ml
from maskedlab.cli import main, parser
from maskedlab.contract import hub

hf = pytest.importorskip('huggingface_hub')
ROOT = Path(__file__).resolve().parents[1]
MINE = """
from maskedlab.recipes.image.mae import MAE
class Mine(MAE):
    sizes = {'micro': dict(image=16, patch=4, dim=16, depth=1, heads=2, decoder_dim=16, decoder_depth=1,
                           decoder_heads=2)}
"""
TINY = dict(image=16, patch=4, dim=16, depth=1, heads=2, decoder_dim=16, decoder_depth=1, decoder_heads=2)


class Repositories(BaseHTTPRequestHandler):
    """As much of a hub as huggingface_hub asks for: what a revision is, what is in it, and the files."""

    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
        pass

    def answer(self, code, body=b'', **headers):
        self.send_response(code)
        for name, value in {'Content-Length': len(body), **headers}.items():
            self.send_header(name.replace('_', '-'), str(value))
        self.end_headers()
        if self.command == 'GET':
            self.wfile.write(body)

    def do_GET(self):
        server: Hub = self.server
        server.asked.append(self.path)
        words = self.path.partition('?')[0].strip('/').split('/')
        api = words[:2] == ['api', 'models']
        name, rest = '/'.join(words[2:4] if api else words[:2]), words[4:] if api else words[2:]
        folder = server.held.get(name)
        if folder is None:
            return self.answer(404, X_Error_Code='RepoNotFound', X_Error_Message='Repository not found')
        sha = hashlib.sha1(name.encode()).hexdigest()
        if rest and rest[1:] and rest[1] not in ('main', 'v1', sha):
            return self.answer(404, X_Error_Code='RevisionNotFound', X_Error_Message='Revision not found')
        files = {f.name: f.read_bytes() for f in sorted(folder.iterdir()) if f.is_file()}
        tag = lambda data: hashlib.sha1(data).hexdigest()
        if api and rest[:1] == ['tree']:
            found = [dict(type='file', path=k, size=len(v), oid=tag(v)) for k, v in files.items()]
            return self.answer(200, json.dumps(found).encode(), Content_Type='application/json')
        if api:
            about = dict(id=name, sha=sha, siblings=[{'rfilename': k} for k in files], private=False, tags=[],
                         downloads=0, likes=0)
            return self.answer(200, json.dumps(about).encode(), Content_Type='application/json')
        data = files.get('/'.join(rest[2:]))
        if data is None:
            return self.answer(404, X_Error_Code='EntryNotFound', X_Error_Message='Entry not found')
        self.answer(200, data, ETag=f'"{tag(data)}"', X_Repo_Commit=sha)

    do_HEAD = do_GET


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Repositories)
        self.held, self.asked = {}, []
        self.address = f'http://127.0.0.1:{self.server_port}'


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A hub on the loopback address with an own network, one of transformers, one of timm, one pickled."""
    server = Hub()
    threading.Thread(target=server.serve_forever, args=[.01], daemon=True).start()
    torch.manual_seed(0)
    r = ml.create_recipe('mae', **TINY)
    for name, layout in (('me/own', 'maskedlab'), ('them/vit', 'transformers'), ('timm/vit.mae', 'timm')):
        server.held[name] = Path(r.save_pretrained(tmp_path / 'held' / name, layout=layout))
    server.held['old/pickle'] = tmp_path / 'held' / 'old'
    server.held['old/pickle'].mkdir()
    torch.save({'model': r.state_dict()}, server.held['old/pickle'] / 'pytorch_model.bin')
    answer_from(server.address, tmp_path / 'cache', monkeypatch)
    yield server
    server.shutdown()
    server.server_close()
    forget()


def answer_from(address, cache, monkeypatch, offline=False):
    """As the environment has it for a process that begins: HF_ENDPOINT, HF_HUB_CACHE, HF_HUB_OFFLINE."""
    was = hf.constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(hf.constants.ENDPOINT, address)
    for name, value in dict(ENDPOINT=address, HUGGINGFACE_CO_URL_TEMPLATE=was, HF_HUB_CACHE=str(cache),
                            HF_HUB_OFFLINE=offline).items():
        monkeypatch.setattr(hf.constants, name, value)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    forget()


def forget():
    hub._fetched.cache_clear()
    getattr(hf, 'close_session', lambda: None)()


def sentence(kind, call, *words):
    with pytest.raises(kind) as error:
        call()
    said = str(error.value)
    assert '\n' not in said and len(said) <= 200, said
    assert all(w in said for w in words), said


def test_a_repository_is_a_place_of_weights(served):
    b = dict(image=torch.rand(2, 3, 16, 16))
    held = ml.load_pretrained(served.held['me/own'])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')         # of timm the decoder is untrained, and that is said
        for word in ('hf:me/own', 'hf:me/own@main', 'hf:me/own@v1', 'hf:them/vit', 'timm:vit.mae',
                     'hf:timm/vit.mae'):
            for opened in (ml.load_pretrained, ml.create_recipe):
                torch.testing.assert_close(opened(word).features(b), held.features(b), rtol=1e-4, atol=1e-4)
            assert ml.card(word).title == ml.card('mae').title
    assert ml.create_recipe('hf:me/own', strategy=ml.masks.Block(.5)).strategy == ml.masks.Block(.5)
    trainer = ml.Trainer('hf:me/own', 'image', steps=1, batch=2, show=False)
    assert trainer.recipe.config['dim'] == 16


def test_what_is_in_the_cache_needs_no_network(served, tmp_path, monkeypatch):
    before = ml.create_recipe('hf:me/own@v1').state_dict()
    n = len(served.asked)
    ml.card('hf:me/own@v1')
    assert len(served.asked) == n               # one look for each process
    answer_from(served.address, tmp_path / 'cache', monkeypatch, offline=True)
    again = ml.create_recipe('hf:me/own@v1').state_dict()
    assert all(v.equal(again[k]) for k, v in before.items()) and len(served.asked) == n
    sentence(OSError, lambda: ml.card('hf:them/vit'), 'them/vit', 'not in the cache', 'HF_HUB_OFFLINE')
    answer_from('http://127.0.0.1:9', tmp_path / 'cache', monkeypatch)          # nobody is there
    assert ml.create_recipe('hf:me/own@v1').state_dict().keys() == before.keys()
    sentence(OSError, lambda: ml.card('hf:them/vit'), 'them/vit', '127.0.0.1:9 did not answer', 'network')


def test_what_cannot_be_fetched_is_said(served, monkeypatch):
    sentence(OSError, lambda: ml.card('hf:me/nothing'), 'no repository me/nothing', 'check the name')
    sentence(OSError, lambda: ml.card('timm:vit'), 'no repository timm/vit', 'end in a tag')
    sentence(ValueError, lambda: ml.card('hf:me/own@v2'), 'no revision v2')
    sentence(ValueError, lambda: ml.card('hf:mae'), 'hf:owner/name')
    sentence(ValueError, lambda: ml.card('hf:-/..'), 'hf:owner/name')
    forget()
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    sentence(ValueError, lambda: ml.card('hf:me/own'), 'huggingface_hub', 'maskedlab[timm]')


def test_pickled_weights_are_fetched_for_who_trusts_them(served, tmp_path, capsys):
    served.held['old/own'] = Path(ml.create_recipe('mae', **TINY).save_pretrained(tmp_path / 'x'))
    config = json.loads((tmp_path / 'x' / 'config.json').read_text())
    shutil.move(tmp_path / 'x' / 'model.safetensors', tmp_path / 'away.safetensors')
    torch.save(ml.create_recipe('mae', **TINY).state_dict(), tmp_path / 'x' / 'pytorch_model.bin')
    for opened in (ml.create_recipe, ml.load_pretrained, ml.card):
        sentence(ValueError, lambda f=opened: f('hf:old/own'), 'no model.safetensors', 'trust=True')
    assert not any('pytorch_model.bin' in path for path in served.asked)
    assert main(['card', 'hf:old/own']) == 2 and '--trust' in capsys.readouterr().err
    assert ml.create_recipe('hf:old/own', trust=True).config['dim'] == config['config']['dim']
    assert main(['card', 'hf:old/own', '--trust']) == 0


def test_a_pickle_that_asks_for_more_than_tensors_is_not_run_even_when_trusted(served, tmp_path):
    class Payload:
        def __reduce__(self):
            return os.system, (f'touch {tmp_path}/it_ran',)

    torch.save({'model': {'w': torch.ones(1)}, 'more': Payload()},
               served.held['old/pickle'] / 'pytorch_model.bin')
    sentence(ValueError, lambda: ml.create_recipe('hf:old/pickle', trust=True), 'was not run')
    assert not (tmp_path / 'it_ran').exists()


def test_the_environment_is_heard(served, tmp_path):
    "HF_ENDPOINT and HF_HOME, as huggingface_hub reads them when a process begins."
    env = {**os.environ, 'HF_HUB_OFFLINE': '0', 'HF_ENDPOINT': served.address,
           'HF_HOME': str(tmp_path / 'home'), 'PYTHONPATH': str(ROOT)}
    run = lambda **more: subprocess.run([sys.executable, '-m', 'maskedlab', 'card', 'hf:me/own', '--json'],
                                        env={**env, **more}, capture_output=True, text=True, timeout=300)
    assert json.loads(run().stdout)['title'] == ml.card('mae').title
    n = len(served.asked)
    assert json.loads(run(HF_HUB_OFFLINE='1').stdout)['year'] == 2022 and len(served.asked) == n


# --------------------------------------------------------------------------- all commands, all five kinds

# what each says of weights, where it does not take them: it trains anew
ANEW = {'compare': 'holds weights', 'claim': 'holds weights'}


@pytest.fixture
def words(served, tmp_path, monkeypatch):
    """Each kind of word, and the folder of pictures with classes that the commands read."""
    monkeypatch.chdir(tmp_path)
    Path('mine.py').write_text(MINE)
    g = torch.Generator().manual_seed(0)
    for name, at in (('dark', .2), ('light', .8)):
        Path('pictures', name).mkdir(parents=True)
        for i in range(8):
            x = (at + .1 * torch.randn(16, 16, 3, generator=g)).clamp(0, 1) * 255
            Image.fromarray(x.byte().numpy()).save(Path('pictures', name, f'{i}.png'))
    ml.Trainer(ml.create_recipe('mae', **TINY), 'pictures', steps=2, batch=2, save_every=1, out='run',
               show=False).fit(background=False)
    return {'a name': ['mae'], 'a class': ['mine.py:Mine'], 'a run': ['run'],
            'a checkpoint': ['run/checkpoints/step-000000001',
                             'run/checkpoints/step-000000002/model.safetensors'],
            'a repository': ['hf:me/own', 'timm:vit.mae']}


COMMANDS = dict(
    list=[], card=[], leak=['-n', '2'], check=[], explore=[],
    train=['--data', 'pictures', '--steps', '1', '--batch', '2', '--out', 'out'],
    probe=['--data', 'pictures', '--image', '16'],
    finetune=['--data', 'pictures', '--image', '16', '--steps', '1', '--batch', '4', '--out', 'out'],
    export=['--to', 'timm', '--out', 'out'],
    compare=['--data', 'pictures', '--steps', '1', '--seeds', '2', '--no-tuning', '--no-cost'],
    claim=['--steps', '1', '--seeds', '2'],
)


@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_takes_every_word_or_says_why_not(command, words, capsys, monkeypatch):
    if command == 'explore':            # what it would show, without the server
        from maskedlab.show.explorer import widget
        monkeypatch.setattr(widget, 'serve', lambda which, port, strategy, trust, **_: print(
            widget.shown_elsewhere(which, strategy, trust)))
    if command == 'claim':              # arms are trained elsewhere
        monkeypatch.setattr('maskedlab.instruments.claim.run_claim', lambda *a, **k: dict(
            contrast='a - b', mean=0., interval=(0., 0.), verdict='undecided'))
    if command == 'check':
        from maskedlab.instruments import keeps
        monkeypatch.setattr(keeps, 'check_recipe', lambda r: type('Kept', (), dict(ok=True))())
    for kind, given in words.items():
        for word in given:
            shutil.rmtree('out', ignore_errors=True)
            code = main([command, word, *COMMANDS[command]])
            said = capsys.readouterr()
            saved = kind not in ('a name', 'a class')
            if saved and command in ANEW:
                assert code == 2 and ANEW[command] in said.err and said.err.count('\n') == 1, (word, said)
            elif kind == 'a class' and command == 'claim':
                assert code == 2 and 'has no claim' in said.err, said
            else:
                assert code == 0, (word, said)
                assert said.out.strip()


def test_words_that_lead_nowhere_are_told_in_a_line(words, capsys):
    nowhere = {'runs/none': 'no folder or file runs/none', 'none.pth': 'no checkpoint',
               'mea': 'did you mean mae', 'none.py:Mine': 'none.py; give the path', 'mine.py': 'mine.py:Mine',
               'mine.py:None': 'holds no class', 'hf:me/none': 'no repository',
               'pictures': 'holds no weights'}
    for word, told in nowhere.items():
        for command in ('card', 'leak', 'check', 'explore', 'list'):
            if command == 'list' and word in ('mea', 'runs/none', 'mine.py'):
                continue                # a pattern that nothing fits
            assert main([command, word]) == 2, (command, word)
            said = capsys.readouterr().err
            assert told in said and said.count('\n') == 1, (command, word, said)
    assert main(['leak', 'run', '--size', 'base']) == 2 and 'has a size already' in capsys.readouterr().err


# ----------------------------------------------------------------------------------- options say defaults

def commands():
    return next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)).choices


@pytest.mark.parametrize('command', commands())
def test_every_option_says_what_it_is_and_its_default(command):
    c = commands()[command]
    page = ' '.join(c.format_help().split())
    form = c._get_formatter()
    for action in c._actions:
        optional = action.nargs in ('?', '*') or action.option_strings and not action.required
        if isinstance(action, argparse._HelpAction) or not optional:
            continue
        text = form._get_help_string(action)
        assert 'default' in text and not text.startswith(';'), (action.dest, text)
        whole = ' '.join(form._expand_help(action).split())
        assert whole.replace('- ', '-') in page.replace('- ', '-'), whole
        if isinstance(action.default, int | float) and not isinstance(action.default, bool):
            assert str(action.default) in text, text


@pytest.mark.parametrize('line', ['list m*', 'card mae', 'leak mine.py:Mine -n 2', 'weights', 'data',
                                  'compare mine.py:Mine --data pictures --steps 1 --seeds 2 --no-tuning '
                                  '--no-cost', 'probe run --data pictures'])
def test_a_script_reads_json(line, words, capsys):
    assert main([*line.split(), '--json']) == 0
    found = json.loads(capsys.readouterr().out)
    assert found
    if line.startswith('leak'):
        assert found['ok'] is True and set(found['changes']) >= {'units'}
    if line == 'data':
        assert {'name', 'train', 'test', 'licence'} <= set(found[0])


def test_a_claim_for_a_script(monkeypatch, capsys):
    monkeypatch.setattr('maskedlab.instruments.claim.run_claim', lambda *a, say, **k: say('arm') or dict(
        contrast='a - b', mean=float('nan'), interval=(0., 1.), verdict='undecided'))
    assert main(['claim', 'mae', '--json', '--steps', '1']) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found['mean'] is None and found['rehearsal'] is True and 'arm' in said.err
