"""A notebook that is opened again, after its kernel has gone, shows pictures and questions, and no error."""
import json
import urllib.request

from conftest import in_lab

CELL = '''import maskedlab as ml
from maskedlab.course.exercises import predict, reveal
from IPython.display import display
guess = predict('How much is hidden?', ['half', 'three quarters'])
reveal(guess, 'three quarters', 'MAE hides 75 %.', 'A **text** that tells it.')
display(ml.Explorer('mae'))'''
OUTPUTS = '.jp-Notebook .jp-OutputArea'
DEAD = 'Error displaying widget'


def asked(jupyter, method, path):
    url, token, _ = jupyter
    return urllib.request.urlopen(urllib.request.Request(f'{url}{path}?token={token}', method=method)).read()


def test_guesses_wait_for_the_learner_and_a_notebook_opened_again_shows_its_pictures(browser, jupyter):
    url, token, folder = jupyter
    page = in_lab(browser, jupyter, CELL, 'stored')
    area = page.locator(OUTPUTS).first
    # alive: the widgets, and no second copy of what they show
    assert page.locator('.ml-stored').count() == 2
    assert not any(page.locator('.ml-stored').nth(i).is_visible() for i in range(2))
    said = area.inner_text()
    assert 'waits for your guess' in said and '75 %' not in said and 'tells it' not in said
    assert said.count('How much is hidden?') == 1
    # the guess is made: the answer appears where it waited
    page.get_by_label('three quarters').check()
    page.get_by_role('button', name='That is my guess').click()
    for words in ('MAE hides 75 %', 'A text that tells it'):        # they come one by one
        page.wait_for_function(f"() => document.querySelector('{OUTPUTS}').innerText.includes('{words}')")
    assert 'waits for' not in area.inner_text()
    page.keyboard.press('Control+s')
    page.wait_for_function('() => !document.querySelector(".jp-mod-current.jp-mod-dirty")')
    for _ in range(100):
        if 'ml-stored' in (folder / 'stored.ipynb').read_text(): break
        page.wait_for_timeout(100)
    page.goto('about:blank')
    for session in json.loads(asked(jupyter, 'GET', '/api/sessions')):
        asked(jupyter, 'DELETE', f"/api/kernels/{session['kernel']['id']}")
    # opened again: its pictures
    page.goto(f'{url}/lab/tree/stored.ipynb?token={token}&reset')
    page.wait_for_selector('.ml-stored', timeout=90_000)
    page.wait_for_function(f"() => document.body.textContent.includes('{DEAD}')", timeout=60_000)
    assert DEAD not in page.locator(OUTPUTS).first.inner_text()             # it is there, and not shown
    picture = page.locator('.ml-stored img')
    assert picture.is_visible() and picture.evaluate('(i) => i.naturalWidth') > 300
    assert 'mae' in picture.get_attribute('alt')
    assert 'three quarters' in page.locator('.ml-stored').first.inner_text()
    assert 'MAE hides 75 %' in page.locator(OUTPUTS).first.inner_text()
    page.context.close()
