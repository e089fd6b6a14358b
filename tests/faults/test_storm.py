"""A hundred containers fall sick at once, and one never gets well."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import docker
import pytest

from bench.many_containers import all_of, make, make_sick, remove
from tests.e2e.conftest import Autoheal

COUNT = 100
AT_ONCE = 8


@pytest.fixture
def crowd(label: str) -> Iterator[tuple[Any, list[str]]]:
    api: Any = docker.from_env(max_pool_size=50).api
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda n: make(api, label, interval_seconds=8), range(COUNT)))
        make_sick(api, pool, label, ids)
        yield api, ids
        list(pool.map(lambda row: remove(api, row["Id"]), all_of(api, label)))


@pytest.mark.alone
def test_all_are_healed_once_within_the_limits_and_a_flapping_one_is_in_nobodys_way(
    crowd: tuple[Any, list[str]], autoheal: Callable[..., Autoheal], label: str
) -> None:
    api, ids = crowd
    flapping = make(api, label, interval_seconds=1, command="touch /sick; exec sleep 1000")
    healer = autoheal(
        AUTOHEAL_MAX_AT_ONCE=str(AT_ONCE),
        AUTOHEAL_MAX_PER_MINUTE="1000",
        AUTOHEAL_ACTION="restart",
        AUTOHEAL_MAX_ATTEMPTS="1000",
        AUTOHEAL_BACKOFF="0",
        AUTOHEAL_INTERVAL="1",
    )
    healer.wait_line("watching the Docker engine")
    names = {row["Id"]: row["Names"][0].lstrip("/") for row in all_of(api, label)}
    others = "|".join(names[one] for one in ids)
    healer.wait_line(f"({others}): restarted in", seconds=120, count=COUNT)

    under_way, most, done = 0, 0, Counter[str]()
    for line in healer.lines:
        found = re.search(r"(\S+): (restarting|restarted)", line)
        if found is not None:
            under_way += 1 if found[2] == "restarting" else -1
            most = max(most, under_way)
            done[found[1]] += found[2] == "restarted"
    assert 2 < most <= AT_ONCE
    assert {done[names[one]] for one in ids} == {1}
    # it had its turn, and then stood behind those that had had none
    assert done[names[flapping]] <= 3, json.dumps(done)
