"""The explorer without a notebook: `maskedlab explore`, a page of Voila on this machine."""
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from conftest import ROOT, free_port, ready, settled, stop

PICTURES = Path(os.environ.get('LAB_PICTURES', 'runs/browser'))


def answering(port, tries=300):
    """Wait until the server says anything, here that it wants a token."""
    for _ in range(tries):
        try:
            return urllib.request.urlopen(f'http://127.0.0.1:{port}/static/none', timeout=2)
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(.2)
    raise TimeoutError(port)


def test_page_of_its_own(browser, tmp_path):
    pytest.importorskip('voila')
    port = free_port()
    code = f"from maskedlab.show.explorer.widget import serve; serve('mae', port={port}, open_browser=False)"
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'HOME': str(tmp_path),
           'JUPYTER_RUNTIME_DIR': str(tmp_path / 'run')}
    server = subprocess.Popen([sys.executable, '-c', code], env=env, cwd=tmp_path, stdout=subprocess.PIPE,
                              text=True)
    try:
        address = re.search(rf'http://127.0.0.1:{port}/\?token=\w+', server.stdout.readline())[0]
        answering(port)
        context = browser.new_context(viewport=dict(width=1280, height=920))
        page = context.new_page()
        errors = []
        page.on('pageerror', lambda e: errors.append(str(e)))
        page.goto(address, timeout=120_000)
        page.wait_for_selector('.mlx', timeout=120_000)
        ready(page, 120_000)
        settled(page, lambda: page.locator('[data-field=ratio]').fill('0.25'))
        assert page.locator('.mlx-status').inner_text().startswith('16 of 64')
        # the whole width
        assert page.evaluate("document.querySelector('.mlx').getBoundingClientRect().width") > 1100
        assert page.locator('text=import maskedlab').count() == 0                                # and no code
        PICTURES.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(PICTURES / 'voila.png'))
        assert errors == []
        # one kernel: opened again, the first page says that it has expired, and the second one works
        other = context.new_page()
        other.goto(f'http://127.0.0.1:{port}/', timeout=120_000)      # the browser has kept the token
        other.wait_for_selector('.mlx', timeout=120_000)
        ready(other, 120_000)
        page.locator('[data-field=ratio]').fill('0.5')
        page.wait_for_selector('.mlx-alert:has-text("This page has expired")', timeout=20_000)
        settled(other, lambda: other.locator('[data-field=ratio]').fill('0.5'))
        assert not other.locator('.mlx-alert').is_visible()
        context.close()
    finally:
        stop(server)


def test_taken_port_and_unknown_recipe_are_sentences():
    import socket

    from maskedlab.show.explorer.widget import serve
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        s.listen()
        with pytest.raises(ValueError, match='taken'):
            serve('mae', port=s.getsockname()[1])
    with pytest.raises(ValueError, match='did you mean'):
        serve('mea')
