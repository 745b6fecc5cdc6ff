"""`pytest tests/test_contract.py --recipe mae` (or `my_file.py:Mine`) holds one recipe to the contract."""

import os

import pytest

USED, SHARED = pytest.StashKey[float](), pytest.StashKey[float]()


def used():
    """Processor seconds of this process and of those that it has waited for."""
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    item.config.stash[SHARED] = 0.
    item.stash[USED] = used()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    # what is made once for all tests of a file is no case's own
    start = used()
    try:
        return (yield)
    finally:
        if fixturedef.scope == 'module' and not hasattr(request, 'param'):
            request.config.stash[SHARED] = request.config.stash.get(SHARED, 0.) + used() - start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    # the report of a file says what each test has used: `maskedlab bench tests` adds it up
    if call.when == 'teardown':
        seconds = used() - item.stash[USED] - item.config.stash[SHARED]
        item.user_properties.append(('processor', round(seconds, 3)))
    return (yield)


def pytest_addoption(parser):
    parser.addoption('--recipe', action='append', default=[], metavar='NAME or FILE.py:CLASS',
                     help='hold this recipe alone to the contract, also one from outside the package')
    parser.addoption('--all', action='store_true', help='every value at every door (tests/test_doors.py)')


def pytest_generate_tests(metafunc):
    # `case` is a recipe with a batch, made once for all tests of it; other files have cases of their own
    if 'case' in metafunc.fixturenames and hasattr(metafunc.module, 'NAMES'):
        given = metafunc.config.getoption('--recipe')
        metafunc.parametrize('case', given or metafunc.module.NAMES, indirect=True, scope='module')


def pytest_collection_modifyitems(config, items):
    if config.getoption('--recipe'):
        mine = [i for i in items if 'case' in getattr(i, 'fixturenames', ())]
        config.hook.pytest_deselected(items=[i for i in items if i not in mine])
        items[:] = mine


def pytest_configure(config):
    config.addinivalue_line('filterwarnings', 'ignore:the stage .* has not been trained:UserWarning')


@pytest.fixture(scope='module')
def samples():
    """The embedded data, read once for the cases of a file: cutting the prose takes longer than most."""
    import maskedlab as ml
    for name in ('image', 'text', 'points'):
        ml.sample(name, n=1)


@pytest.fixture
def quick_start(monkeypatch):
    """Networks that start with plain numbers, the same block again and again: random ones are dear by the
    hundred million."""
    import torch
    from torch.nn import init
    # a prime: no two rows alike
    block = torch.rand(65_521, generator=torch.Generator().manual_seed(0)) * .04 - .02

    def fill(tensor, *args, **kwargs):
        for part in tensor.data.view(-1).split(len(block)):
            part.copy_(block[:len(part)])
        return tensor
    for name in ('trunc_normal_', 'normal_', 'kaiming_uniform_', 'xavier_uniform_'):
        monkeypatch.setattr(init, name, fill)


@pytest.fixture
def one_thread():
    """Torch with one thread, for numbers that must be equal to the last bit."""
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
