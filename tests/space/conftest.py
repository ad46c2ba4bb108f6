"""The Space as it would run on the Hub, on argus-nano's hub folder: loaded once, served once, one browser for all."""

import importlib.util
import sys

import pytest
from browsing import SPACE, browser, find_browser

from argus_tools.export import export


@pytest.fixture(scope="session")
def app(tmp_path_factory):
    """The module app.py. A folder's code is loaded as remote code, whatever is installed here."""
    pytest.importorskip("gradio", reason="the Space needs gradio: pip install '.[demo]'")
    folder = export(None, tmp_path_factory.mktemp("space") / "argus-nano")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARGUS_MODEL", str(folder))
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        specification = importlib.util.spec_from_file_location("argus_space", SPACE / "app.py")
        module = importlib.util.module_from_spec(specification)
        patch.setitem(sys.modules, "argus_space", module)  # what it defines can be pickled
        specification.loader.exec_module(module)
        module.model.float()  # in bf16 a kept image's answers have scores that differ in the third digit
        yield module


@pytest.fixture(scope="module")  # Playwright keeps an event loop in this thread, which other files must not meet
def chromium():
    pytest.importorskip("playwright", reason="tests in a browser need playwright")
    if find_browser() is None:
        pytest.skip("no Chromium on this machine: .ci/run installs Debian's chromium-headless-shell where it may")
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def url(app, chromium):
    """The page, served by this process."""
    _, address, _ = app.demo.launch(**app.options(), prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    yield address
    app.demo.close()
