"""Asks the questions of `test_asking` in a process of its own, which the test kills."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.evaluate.test_asking import QUESTIONS
from thrifty.evaluate.asking import collect_answers, serve_url

if __name__ == "__main__":
    collect_answers(QUESTIONS, Path(sys.argv[2]), serve_url(sys.argv[1]))
