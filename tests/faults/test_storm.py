"""A hundred containers become unhealthy at once, and one never recovers."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import docker
import pytest

from testbed.autoheal import WATCHING, Autoheal
from testbed.containers import UNHEALTHY_FILE
from testbed.crowd import all_of, make, make_unhealthy, remove
from testbed.deadlines import LONG_SECONDS

COUNT = 100
AT_ONCE = 8


@pytest.fixture
def crowd(label: str) -> Iterator[tuple[Any, list[str]]]:
    api: Any = docker.from_env(max_pool_size=50).api
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda n: make(api, label, interval_seconds=8), range(COUNT)))
        make_unhealthy(api, pool, label, ids)
        yield api, ids
        list(pool.map(lambda row: remove(api, row["Id"]), all_of(api, label)))


@pytest.mark.more
def test_all_are_healed_once_within_the_limits_and_a_flapping_one_is_in_nobodys_way(
    crowd: tuple[Any, list[str]], autoheal: Callable[..., Autoheal], label: str
) -> None:
    api, ids = crowd
    flapping = make(
        api, label, interval_seconds=1, command=f"touch {UNHEALTHY_FILE}; exec sleep 1000"
    )
    healer = autoheal(
        AUTOHEAL_MAX_AT_ONCE=str(AT_ONCE),
        AUTOHEAL_MAX_PER_MINUTE="1000",
        AUTOHEAL_ACTION="restart",
        AUTOHEAL_MAX_ATTEMPTS="1000",
        AUTOHEAL_BACKOFF="0",
        AUTOHEAL_INTERVAL="1",
    )
    healer.wait_line(WATCHING)
    names = {row["Id"]: row["Names"][0].lstrip("/") for row in all_of(api, label)}
    others = "|".join(names[one] for one in ids)
    healer.wait_line(f"({others}): restarted in", seconds=LONG_SECONDS, count=COUNT)

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
