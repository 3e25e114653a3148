"""The toy environment as an installed package, for this process and those that it starts."""

import sys

import pytest

from tests.pipeline.rollout.toy_run import PACKAGE, install, write_toy_run


@pytest.fixture(scope="module")
def toy_package(tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    install(site, PACKAGE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        yield site
    sys.modules.pop(PACKAGE, None)


@pytest.fixture(scope="module")
def toy_run(toy_package, tmp_path_factory):
    return write_toy_run(tmp_path_factory.mktemp("toy_run"))
