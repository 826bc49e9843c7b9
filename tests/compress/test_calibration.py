"""How much of a text is learned from."""

from __future__ import annotations

from pathlib import Path

import pytest

from thrifty.compress.calibration import count_tokens, read_calibration
from thrifty.engines.echo.backend import make_tokenizer


@pytest.mark.parametrize(("learned", "used"), [(2048, 2048), (8192, 8192), (100, 512)])
def test_as_many_tokens_are_learned_from_as_were_asked_for(
    tmp_path: Path, learned: int, used: int
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("a word and another one\n" * 2000)
    judged, windows = read_calibration(path, make_tokenizer(), 512, judged=8192, learned=learned)
    assert count_tokens(windows) == used
    assert judged
