"""What an old llguidance means is said, where it is used."""

from __future__ import annotations

import pytest

from engines.grammar import release


@pytest.mark.parametrize(
    ("installed", "falls_short"), [("0.7.29", True), ("1.6.9", True), ("1.7.0", False), ("2.0.0", False)]
)
def test_a_release_that_does_not_bound_white_space_falls_short(
    monkeypatch: pytest.MonkeyPatch, installed: str, falls_short: bool
) -> None:
    monkeypatch.setattr(release, "version", lambda package: installed)
    said = release.shortcoming()
    assert (said is not None) is falls_short
    if said is not None:
        assert f"llguidance {installed} " in said
        assert "pip install --upgrade llguidance" in said


def test_the_installed_release_does_not_fall_short() -> None:
    assert release.shortcoming() is None
