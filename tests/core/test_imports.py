"""An import that is broken off by Ctrl-C is finished first."""

import os
import signal
import sys
import threading

import pytest

from lab.core import imports


def test_ctrl_c_waits_for_the_imports(monkeypatch):
    imported = []

    def interrupted(name):
        os.kill(os.getpid(), signal.SIGINT)
        imported.append(name)

    monkeypatch.setattr(imports, "import_module", interrupted)
    for name in imports.LATE:
        monkeypatch.delitem(sys.modules, name, raising=False)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        imports.complete()
    assert imported == [*imports.LATE] and signal.getsignal(signal.SIGINT) is handler


def test_in_a_thread_it_imports_as_well(monkeypatch):
    imported = []
    monkeypatch.setattr(imports, "import_module", imported.append)
    monkeypatch.setattr(imports, "LATE", ("no.such.module",))
    thread = threading.Thread(target=imports.complete)
    thread.start()
    thread.join()
    assert imported == ["no.such.module"]
