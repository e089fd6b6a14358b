"""Log files: named by time, of a limited size, so many of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoheal import log
from autoheal.settings import Settings


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    one = logging.getLogger("autoheal")
    before = one.handlers[:], one.level, one.propagate
    yield one
    for handler in one.handlers:
        handler.close()
    one.handlers[:], one.level, one.propagate = before


def files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


def test_each_file_is_of_a_limited_size_and_only_so_many_are_kept(
    logger: logging.Logger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure(Settings(log_dir=str(tmp_path), log_bytes=10_000, log_count=3))
    for n in range(1000):
        logger.info("line %d of many", n)
    assert len(files(tmp_path)) == 3
    for file in files(tmp_path):
        assert file.stat().st_size <= 10_000
        assert file.name.startswith("autoheal-20")
    assert files(tmp_path)[-1].read_text().splitlines()[-1].endswith("line 999 of many")
    assert capsys.readouterr().out.count("\n") == 1000  # beside the console


def test_a_new_start_begins_a_new_file_and_takes_nothing_that_is_not_ours(
    logger: logging.Logger, tmp_path: Path
) -> None:
    (tmp_path / "precious.log").touch()
    for _ in range(5):
        log.configure(Settings(log_dir=str(tmp_path), log_count=2))
        logger.info("hello")
    names = [file.name for file in files(tmp_path)]
    assert len(names) == 3
    assert "precious.log" in names


def test_a_directory_that_is_not_there_is_said_and_the_console_goes_on(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure(Settings(log_dir="/nowhere"))
    logger.info("hello")
    said = capsys.readouterr().out
    assert "AUTOHEAL_LOG_DIR=/nowhere: no log file there: No such file or directory" in said
    assert said.endswith("hello\n")
