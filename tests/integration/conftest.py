"""The `nybble` command in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from service.cli import main
from tests.support.command_line import Result


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run `nybble` with these arguments."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr("sys.argv", ["nybble", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capfdbinary.readouterr()
        assert isinstance(caught.value.code, int)
        return Result(caught.value.code, out.decode(), err.decode())

    return run
