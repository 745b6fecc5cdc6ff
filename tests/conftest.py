"""`pytest tests/test_contract.py --recipe my_file.py:Mine` holds a recipe of your own to the contract too."""


def pytest_addoption(parser):
    parser.addoption('--recipe', action='append', default=[], metavar='FILE.py:CLASS',
                     help='a recipe from outside the package')


def pytest_generate_tests(metafunc):
    # other files have cases of their own
    if 'case' in metafunc.fixturenames and hasattr(metafunc.module, 'NAMES'):
        given = metafunc.config.getoption('--recipe')
        metafunc.parametrize('case', given or metafunc.module.NAMES, indirect=True, scope='module')
