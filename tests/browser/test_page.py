"""The page in a real Chromium, against a real engine and a real Ollama."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import docker
import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from docker.models.containers import Container
from playwright.sync_api import Page, expect

from testbed.browser import PHONE, TOKEN, WIDE, Site
from testbed.containers import AUTOHEAL, UNHEALTHY_CHECK, Workload, healthcheck
from testbed.deadlines import scaled
from testbed.engines import PrivateEngine
from testbed.nvml import Nvml, needs_host_pids
from testbed.ollama import Ollama

GPU = ("device GPU-1 24576 9000 37", "detail 61 210000 350000 0 4")

EVIL = "<img src=x onerror=alert(1)>"

FOCUS = "document.activeElement.ariaLabel ?? document.activeElement.textContent"

Sites = Callable[..., Site]
Workloads = Callable[..., Workload]


def row(page: Page, name: str) -> Any:
    return page.locator("#container-table tbody tr", has_text=name)


def test_what_is_shown_is_what_the_engine_the_gpu_and_the_server_say(
    site: Sites, ollama: Callable[..., Ollama], nvml: Nvml
) -> None:
    nvml.answer(*GPU)
    server = ollama({"PROBE_GPU": "off"}, volumes=nvml.volume)
    server.wait_health("healthy")
    server.generate("tiny")
    server.wait_health("healthy", "ready")
    page = site(LD_LIBRARY_PATH=str(nvml.directory), AUTOHEAL_NOTE="third rack").open()

    shown = row(page, server.name)
    expect(shown).to_contain_text(str(server.container.id)[:12])
    expect(shown).to_contain_text("healthy")
    expect(shown).to_contain_text("tiny:latest")  # the probe's own line

    gpu = page.locator("article", has_text="GPU 0")
    for words in ("8.8 GiB of 24.0 GiB (36.6 %)", "37 %", "61 °C", "210 W of 350 W", "power cap"):
        expect(gpu).to_contain_text(words)

    [model] = server.loaded
    shown = page.locator("#model-table tbody tr", has_text=server.name)
    expect(shown).to_contain_text(model["name"])
    expect(shown).to_contain_text(f"{round(model['size'] / 2**20)} MiB")
    expect(shown).to_contain_text("0.0 %")  # of it in VRAM: it runs on the CPU
    expect(shown).to_contain_text("5 min")

    expect(page.locator("header")).to_contain_text("third rack")
    expect(page.locator("header")).to_contain_text(docker.from_env().info()["Name"])
    expect(page.locator("article", has_text="Host")).to_contain_text("CPUs")


def test_a_gpu_that_only_the_probe_sees_is_shown_too(
    site: Sites, ollama: Callable[..., Ollama], nvml: Nvml
) -> None:
    nvml.answer(*GPU)
    server = ollama(volumes=nvml.volume)
    server.wait_health("healthy")
    gpu = site().open().locator("article", has_text="GPU 0")
    expect(gpu).to_contain_text("8.8 GiB of 24.0 GiB")
    expect(gpu).to_contain_text(server.name)


def test_a_heal_appears_without_reload(site: Sites, workload: Workloads) -> None:
    one = workload()
    page = site().open()
    expect(row(page, one.name)).to_contain_text("healthy")
    page.evaluate("window.same = true")
    one.make_unhealthy()
    expect(page.locator("#timeline")).to_contain_text("marked unhealthy")
    expect(page.locator("#timeline")).to_contain_text("restart,")
    expect(row(page, one.name)).to_contain_text("incident for")
    assert page.evaluate("window.same")  # it is the page that was opened


def test_what_containers_call_themselves_stays_text(site: Sites, workload: Workloads) -> None:
    one = workload(
        labels={
            "com.docker.swarm.service.id": uuid.uuid4().hex,
            "com.docker.swarm.service.name": EVIL,
        },
        healthcheck=healthcheck(f"echo '{EVIL}'; {UNHEALTHY_CHECK}"),
    )
    opened = site(AUTOHEAL_CONTAINER_LABEL="all", AUTOHEAL_DRY_RUN="true", AUTOHEAL_NOTE=EVIL)
    page = opened.open()
    expect(page.locator("header")).to_contain_text(EVIL)
    expect(row(page, one.name)).to_contain_text(EVIL)
    one.make_unhealthy()
    expect(page.locator("#timeline")).to_contain_text(EVIL)
    assert page.locator("img").count() == 0


def test_without_the_token_nothing_can_be_done_and_with_it_a_container_is_healed(
    site: Sites, workload: Workloads
) -> None:
    one = workload()
    opened = site()
    page = opened.open()
    expect(row(page, one.name)).to_be_visible()
    assert page.get_by_role("button", name="Heal").count() == 0
    opened.unlock(page, "a-wrong-token-of-mine")
    expect(page.locator("#dialog-error")).to_have_text("the token is wrong")
    page.keyboard.press("Escape")
    opened.unlock(page)

    before = one.started_at
    page.get_by_role("button", name=f"Heal {one.name}").click()
    page.get_by_role("button", name="Heal", exact=True).click()
    one.wait_restarted(before)
    expect(page.locator("#timeline")).to_contain_text("requested by an operator")

    page.get_by_role("button", name=f"Pause {one.name}").click()
    page.get_by_role("button", name="Pause", exact=True).click()
    expect(row(page, one.name)).to_contain_text("paused for")
    resume = page.get_by_role("button", name=f"Resume {one.name}")
    expect(resume).to_be_focused()
    resume.click()
    expect(row(page, one.name)).not_to_contain_text("paused for")
    page.get_by_role("button", name="Pause all").click()
    page.get_by_role("button", name="Pause", exact=True).last.click()
    expect(page.locator("#banner")).to_contain_text("Everything is left alone until")
    page.get_by_role("button", name="Lock").click()
    assert page.get_by_role("button", name="Resume").count() == 0


def test_a_page_without_a_token_is_read_only(site: Sites, workload: Workloads) -> None:
    one = workload()
    opened = site(AUTOHEAL_WEB_TOKEN="")
    page = opened.open()
    expect(row(page, one.name)).to_be_visible()
    expect(page.get_by_role("button", name="Unlock")).to_be_hidden()
    reply = post(f"{opened.url}api/heal", {"name": one.name}, {})
    assert (reply.status_code, "read-only" in reply.json()["error"]) == (403, True)


def test_a_request_of_another_sites_page_is_refused(site: Sites) -> None:
    url = site(AUTOHEAL_WEB_HOSTS="monitor.example").url
    right = {"authorization": f"Bearer {TOKEN}"}
    for headers, status, words in (
        ({}, 401, "the token is wrong"),
        ({"authorization": "Bearer wrong-wrong-wrong-wrong"}, 401, "the token is wrong"),
        ({"origin": "https://evil.example", **right}, 403, "another site's page"),
        ({"host": "evil.example"}, 421, "AUTOHEAL_WEB_HOSTS"),
        ({"host": "monitor.example"}, 401, "the token is wrong"),
    ):
        reply = post(f"{url}api/pause", {"seconds": 60}, headers)
        assert (reply.status_code, words in reply.text) == (status, True), (headers, reply.text)
        said = httpx.get(f"{url}api/status", timeout=scaled(60)).json()
        assert not said["autoheal"]["paused_until"]


def test_a_request_that_makes_no_sense_is_one_clear_line(site: Sites) -> None:
    url = site().url
    for path, body, words in (
        ("heal", {"name": "x", "action": "explode"}, "action: must be one of runner, restart"),
        ("heal", {}, "name: must be a container's name"),
        ("pause", {"seconds": -1}, "seconds: must be a number, more than 0"),
        ("pause", {"seconds": True}, "seconds: must be a number"),
        ("pause", [], "the body must be a JSON object"),
    ):
        reply = post(f"{url}api/{path}", body, {"authorization": f"Bearer {TOKEN}"})
        assert reply.status_code == 400, body
        assert words in reply.json()["error"], body


def post(url: str, body: Any, headers: dict[str, str]) -> httpx.Response:
    return httpx.post(url, json=body, headers=headers, timeout=scaled(60))


def test_the_browser_may_run_and_load_nothing_but_our_own(site: Sites) -> None:
    headers = httpx.get(site().url, timeout=scaled(60)).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("size", [WIDE, PHONE])
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_no_fault_and_nothing_is_wider_than_the_screen(
    site: Sites, workload: Workloads, nvml: Nvml, size: tuple[int, int], dark: bool
) -> None:
    nvml.answer(*GPU)
    one = workload()
    opened = site(LD_LIBRARY_PATH=str(nvml.directory), AUTOHEAL_BACKOFF="0")
    page = opened.open(size, dark=dark)
    before = one.started_at
    one.make_unhealthy()
    one.wait_restarted(before)
    expect(page.locator("#timeline")).to_contain_text("restart,")
    opened.unlock(page)
    button = page.get_by_role("button", name=f"Heal {one.name}")
    expect(button).to_be_visible()
    assert serious(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    button.click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert serious(page) == []


def serious(page: Page) -> list[str]:
    """What axe-core finds, with the place of each fault."""
    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {[node['target'] for node in one['nodes']]}" for one in found]


def wait_redrawn(page: Page, name: str) -> None:
    """Wait until a container's row is another one than now."""
    page.wait_for_function("row => !row.isConnected", arg=row(page, name).element_handle())


def test_all_of_it_can_be_done_with_the_keyboard(site: Sites, workload: Workloads) -> None:
    one = workload()
    opened = site()
    page = opened.open()
    opened.unlock(page)
    expect(page.get_by_role("button", name=f"Heal {one.name}")).to_be_visible()
    page.locator("body").click(position={"x": 2, "y": 2})
    passed = []
    for _ in range(12):
        page.keyboard.press("Tab")
        passed.append(page.evaluate(FOCUS))
        if passed[-1] == f"Heal {one.name}":
            break
    assert passed[0] == "Skip to the containers"
    assert passed[-1] == f"Heal {one.name}"
    # the rows are redrawn, behind a dialog, too, and the focus stays where it was
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    wait_redrawn(page, one.name)
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.get_by_role("button", name=f"Heal {one.name}")).to_be_focused()
    wait_redrawn(page, one.name)
    expect(page.get_by_role("button", name=f"Heal {one.name}")).to_be_focused()


@needs_host_pids
def test_the_documented_json_has_the_documented_shape(
    site: Sites, workload: Workloads, nvml: Nvml
) -> None:
    nvml.answer("device GPU-1 24576 9000 37")
    one = workload()
    opened = site(
        LD_LIBRARY_PATH=str(nvml.directory), AUTOHEAL_HOST_IP="10.3.240.101", AUTOHEAL_NOTE="mine"
    )
    pid = one.pids("sleep")[0]
    nvml.answer("device GPU-1 24576 9000 37", f"process {pid} 1024 62")
    said = httpx.get(f"{opened.url}api/status", timeout=scaled(60)).json()
    assert (said["ip"], said["note"]) == ("10.3.240.101", "mine")
    assert set(said["host-stats"]) == {"cpu-perc", "mem", "gpu"}
    assert said["host-stats"]["gpu"] == [
        {
            "id": 0,
            "model": "Simulated GPU",
            "mem-perc-used": 36.6,
            "mem-used/total": "8.8G / 24.0G",
            "util-perc": 37,
        }
    ]
    mine = said["container-stats"][str(one.container.id)[:12]]
    assert mine["name"] == one.name
    assert set(mine["mem"]) == {"perc-used", "used/total"}
    assert mine["gpu-proc"] == [{"gpu-idx": 0, "mem-perc-used": 4.2, "pid": pid, "sm-util": 62}]
    assert json.dumps(said)


@needs_host_pids
def test_the_image_sees_gpus_and_whose_processes_hold_their_memory(
    start: Callable[..., Container], workload: Workloads, nvml: Nvml, label: str
) -> None:
    one = workload()
    [pid, *_] = one.pids("sleep")
    nvml.answer(*GPU, f"process {pid} 2048 30")
    healer = Workload(
        start(
            AUTOHEAL,
            environment={"AUTOHEAL_WEB": ":8787", "AUTOHEAL_CONTAINER_LABEL": label},
            volumes={
                "/var/run/docker.sock": {"bind": "/var/run/docker.sock", "mode": "rw"},
                **nvml.volume,
            },
            pid_mode="host",
            labels={"autoheal": "false"},
        )
    )
    healer.wait_health("healthy")
    address = healer.attributes["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
    said = httpx.get(f"http://{address}:8787/api/status", timeout=scaled(60)).json()["autoheal"]
    [gpu] = said["gpus"]
    assert (gpu["seen_by"], gpu["temperature_celsius"]) == ("autoheal", 61)
    [process] = gpu["processes"]
    assert (process["pid"], process["memory_bytes"]) == (pid, 2 << 30)
    assert (process["name"], process["container"]) == ("sh", one.name)
    [row] = [row for row in said["containers"] if row["container"] == one.name]
    assert [held["pid"] for held in row["gpu_processes"]] == [pid]


@needs_host_pids
def test_a_process_on_a_gpu_is_named_by_its_container_and_the_model_it_serves(
    site: Sites, ollama: Callable[..., Ollama], nvml: Nvml
) -> None:
    server = ollama({"PROBE_GPU": "off"})
    server.wait_health("healthy")
    server.request(model="tiny", keep_alive=-1)
    [pid] = server.pids("ollama runner")
    nvml.answer(*GPU, f"process {pid} 2048 30")
    page = site(LD_LIBRARY_PATH=str(nvml.directory)).open()
    gpu = page.locator("article", has_text="GPU 0")
    expect(gpu).to_contain_text(f"{server.name}, tiny:latest ({pid}): 2.0 GiB")
    expect(row(page, server.name)).to_contain_text(f"GPU 0: 2.0 GiB for tiny:latest ({pid})")


def test_it_says_whether_it_is_alive_and_whether_it_heals(site: Sites) -> None:
    url = site().url
    assert httpx.get(f"{url}healthz", timeout=scaled(60)).text == "healthy\n"
    assert httpx.get(f"{url}readyz", timeout=scaled(60)).text == "ready\n"


def test_without_an_engine_it_is_not_ready_and_the_page_says_why(
    site: Sites, private_engine: PrivateEngine
) -> None:
    private_engine.start()
    opened = site(DOCKER_HOST=private_engine.socket)
    context = opened.browser.new_context()
    page = context.new_page()
    page.goto(opened.url)
    expect(page.locator("#connection")).to_have_text("live")
    assert httpx.get(f"{opened.url}readyz", timeout=scaled(60)).status_code == 200
    private_engine.stop()
    expect(page.locator("#banner")).to_contain_text("there is no Docker engine")
    reply = httpx.get(f"{opened.url}readyz", timeout=scaled(60))
    assert (reply.status_code, reply.text) == (503, "the Docker engine does not answer\n")
