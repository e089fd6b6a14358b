"""Metrics as a real Prometheus reads them, its rules, and the queries of Grafana's dashboard."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import yaml

from probe.processes import all_visible
from scripts.dev_env import PROMETHEUS
from testbed.autoheal import WATCHING, Autoheal
from testbed.containers import ROOT, Workload
from testbed.deadlines import Deadline, scaled
from testbed.network import free_port
from testbed.nvml import Nvml
from testbed.ollama import Ollama
from testbed.runs import compose_project

DEPLOY = ROOT / "deploy/prometheus"
DASHBOARD = DEPLOY.parent / "grafana/dashboards/ollama.json"
BIN = PROMETHEUS / "usr/bin"

T = TypeVar("T")

SEED_NAMES = {
    "node_gpu_memory_total_bytes": 24576 << 20,
    "node_gpu_memory_used_bytes": 9000 << 20,
    "node_gpu_utilization_percent": 37,
    "node_gpu_temperature_celsius": 61,
    "node_gpu_power_draw_watts": 210,
    "node_gpu_power_limit_watts": 350,
}
GPU = ("device GPU-1 24576 9000 37", "detail 61 210000 350000 0 4")


def promtool(*words: str, text: bytes = b"") -> str:
    done = subprocess.run([BIN / "promtool", *words], input=text, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return (done.stdout + done.stderr).decode()


@contextmanager
def running(*words: Any, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        list(map(str, words)),
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(scaled(60))


def probe(nvml: Nvml, *words: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    """`ollama-probe` on this machine."""
    return subprocess.run(
        [sys.executable, "-m", "probe", *words],
        cwd=ROOT,
        env={**os.environ, "LD_LIBRARY_PATH": str(nvml.directory), **env},
        capture_output=True,
    )


def undocumented(page: bytes) -> list[str]:
    """Metrics that the documentation does not name."""
    known = (ROOT / "docs/monitoring.md").read_text()
    names = re.findall(r"^# HELP (\S+)", page.decode(), re.MULTILINE)
    return [name for name in names if f"`{name}`" not in known]


class Prometheus:
    """A real one, that scrapes every second."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        reply = httpx.get(
            f"{self.url}/api/v1/query", params={"query": expression}, timeout=scaled(60)
        )
        assert reply.status_code == 200, reply.text
        return list(reply.json()["data"]["result"])

    def firing(self) -> set[tuple[str, str]]:
        """Names of the alerts that fire, and their containers."""
        alerts = httpx.get(f"{self.url}/api/v1/alerts", timeout=scaled(60)).json()["data"]["alerts"]
        return {
            (one["labels"]["alertname"], one["labels"].get("container", ""))
            for one in alerts
            if one["state"] == "firing"
        }

    def wait(self, holds: Callable[[], T], what: str) -> T:
        """Wait until something holds, and return it: after a late scrape it is not there again."""
        deadline = Deadline()
        while not (found := holds()):
            assert not deadline.passed, what
            time.sleep(0.5)  # it scrapes and evaluates once a second, and tells nobody
        return found


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Callable[..., Prometheus]]:
    """Starts Prometheus with our configuration and rules, as fast as a test needs them.

    The addresses are those of this test, and each `for:` is but a second.
    """
    with ExitStack() as stack:

        def begin(**targets: str) -> Prometheus:
            config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
            config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
            for job in config["scrape_configs"]:
                job["static_configs"][0]["targets"] = [targets[job["job_name"].replace("-", "_")]]
            rules = (DEPLOY / "rules/ollama.yml").read_text()
            (tmp_path / "rules").mkdir()
            (tmp_path / "rules/ollama.yml").write_text(re.sub(r"for: \d+m", "for: 1s", rules))
            (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
            port = free_port()
            process = running(
                *(BIN / "prometheus", f"--config.file={tmp_path}/prometheus.yml"),
                *(f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address=127.0.0.1:{port}"),
            )
            stack.enter_context(process)
            one = Prometheus(f"http://127.0.0.1:{port}")
            one.wait(lambda: _answers(f"{one.url}/-/ready"), "Prometheus does not start")
            return one

        yield begin


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=scaled(10)).status_code == 200
    except httpx.HTTPError:
        return False


def test_the_names_and_values_of_the_well_known_textfile_are_printed_and_promtool_agrees(
    ollama: Callable[..., Ollama], nvml: Nvml
) -> None:
    server = ollama({"PROBE_GPU": "off"})
    server.wait_listening()
    server.generate("tiny")
    [pid] = server.pids("ollama runner")
    nvml.answer(*GPU, f"process {pid} 8000 30")
    done = probe(nvml, "metrics", "--host", server.url)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode()
    for name, value in SEED_NAMES.items():
        [found] = re.findall(rf'^{name}{{gpu="0"}} (\S+)$', text, re.MULTILINE)
        assert float(found) == value
    assert 'ollama_model_memory_bytes{model="tiny:latest"}' in text
    # Where these tests run in a container, a pid here is not what NVML means by it.
    container, model = (server.container.short_id, "tiny:latest") if all_visible() else ("", "")
    whose = f'container="{container}",gpu="0",model="{model}",pid="{pid}"'
    assert f"node_gpu_process_memory_bytes{{{whose}," in text
    assert promtool("check", "metrics", text=done.stdout) == ""
    assert undocumented(done.stdout) == []


def test_what_there_is_not_has_no_sample(ollama: Callable[..., Ollama], nvml: Nvml) -> None:
    nvml.answer("device GPU-1 24576 9000 37")  # a card that tells neither heat nor power
    server = ollama({"PROBE_GPU": "off"})
    server.wait_listening()
    server.request(model="tiny", keep_alive=-1)
    text = probe(nvml, "metrics", "--host", server.url).stdout.decode()
    assert "\nnode_gpu_memory_used_bytes{" in text
    assert "node_gpu_temperature_celsius{" not in text
    assert 'ollama_model_memory_bytes{model="tiny:latest"}' in text
    assert "ollama_model_expiry_timestamp_seconds{" not in text
    server.request(model="tiny", keep_alive=60)
    server.wait(lambda: server.expires_in() <= 60, "noted")
    text = probe(nvml, "metrics", "--host", server.url).stdout.decode()
    [at] = re.findall(r"^ollama_model_expiry_timestamp_seconds{.*} (\S+)$", text, re.MULTILINE)
    assert 0 < float(at) - time.time() <= 60


def test_a_server_and_a_gpu_that_are_gone_are_metrics_too(nvml: Nvml) -> None:
    nvml.answer("error 999")
    done = probe(nvml, "metrics", "--host", "127.0.0.1:1")
    assert done.returncode == 0
    assert b'node_gpu_fault{fault="unknown"} 1.0' in done.stdout
    assert b"ollama_up 0.0" in done.stdout
    assert promtool("check", "metrics", text=done.stdout) == ""


def test_a_textfile_that_cannot_be_written_is_one_clear_line(nvml: Nvml, tmp_path: Path) -> None:
    file = tmp_path / "gone" / "ollama.prom"
    done = probe(nvml, "metrics", "--textfile", str(file))
    assert done.returncode == 1
    assert done.stderr.decode() == f"ollama-probe: --textfile {file}: No such file or directory\n"
    done = probe(nvml, "metrics", "--every", "5")
    assert done.stderr.decode() == (
        "ollama-probe: --every needs --textfile: a file to write again and again; "
        "see ollama-probe metrics --help\n"
    )


def test_the_rules_say_what_they_should() -> None:
    assert "SUCCESS" in promtool("check", "config", str(DEPLOY / "prometheus.yml"))
    assert "SUCCESS" in promtool("test", "rules", str(Path(__file__).with_name("rules_test.yml")))


def test_series_arrive_rules_fire_on_a_frozen_model_and_every_query_has_data(
    prometheus: Callable[..., Prometheus],
    ollama: Callable[..., Ollama],
    workload: Callable[..., Workload],
    autoheal: Callable[..., Autoheal],
    nvml: Nvml,
    tmp_path: Path,
) -> None:
    nvml.answer(*GPU)
    # To measure it at each check.
    env = {
        "PROBE_GPU": "off",
        "PROBE_MIN_TOKENS_PER_SECOND": "0.01",
        "PROBE_GENERATE": "always",
        "OLLAMA_NUM_PARALLEL": "2",
    }
    server = ollama(env, labels={"autoheal.dry-run": "true"})
    server.wait_health("healthy")
    server.generate("tiny")
    server.wait_health("healthy", "ready")
    web, node = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    healer = autoheal(AUTOHEAL_WEB=web, AUTOHEAL_SETTLE="1")
    healer.wait_line(WATCHING)
    one = workload()
    one.make_unhealthy()
    healer.wait_line(f"{one.name} is healthy again")

    textfile = tmp_path / "textfile" / "ollama.prom"
    textfile.parent.mkdir()
    writer = running(
        *(sys.executable, "-m", "probe", "metrics", "--host", server.url),
        *("--textfile", textfile, "--every", "1"),
        LD_LIBRARY_PATH=str(nvml.directory),
    )
    exporter = running(
        *(BIN / "prometheus-node-exporter", f"--web.listen-address={node}"),
        f"--collector.textfile.directory={textfile.parent}",
    )
    with writer as written_by, exporter:
        page = httpx.get(f"http://{web}/metrics", timeout=scaled(60)).content
        assert promtool("check", "metrics", text=page) == ""
        assert undocumented(page) == []
        scraper = prometheus(autoheal=web, inference_nodes=node)
        scraper.wait(lambda: len(scraper.query("up == 1")) == 2, "both targets are up")
        for name, value in SEED_NAMES.items():
            [row] = scraper.wait(partial(scraper.query, name), f"{name} arrives")
            assert float(row["value"][1]) == value
            assert (row["metric"]["gpu"], row["metric"]["node"]) == ("0", "gpu-node-1")
        for title, query in queries():
            scraper.wait(partial(scraper.query, query), f"{title}: {query}")

        assert scraper.firing() == set()
        # While a user waits, or the server would replace its runner at a check's request.
        with server.endless_request("tiny"):
            server.freeze("runner")
            expected = ("OllamaUnhealthy", server.name)
            scraper.wait(lambda: expected in scraper.firing(), "the rule fires")
            unhealthy = scraper.wait(
                partial(scraper.query, "autoheal_container_healthy == 0"), "it is unhealthy"
            )
            assert [row["metric"]["container"] for row in unhealthy] == [server.name]
            query = f'autoheal_container_reason{{container="{server.name}"}}'
            [reason] = scraper.wait(partial(scraper.query, query), "the reason")
            assert reason["metric"]["reason"] == "stalled"
        written_by.terminate()
        assert written_by.wait(scaled(60)) == 0


@pytest.mark.parametrize("more", [(), ("compose.gpu.yaml",), ("compose.hardened.yaml",)])
def test_compose_understands_the_monitoring_beside_the_rest(more: tuple[str, ...]) -> None:
    files = [f"--file={name}" for name in ("compose.yaml", *more, "compose.monitoring.yaml")]
    done = subprocess.run(
        ["docker", "compose", *files, "config", "--quiet"], cwd=ROOT, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_service_that_writes_the_textfile_runs_without_capabilities() -> None:
    project = f"--project-name={compose_project()}"
    files = ["--file=compose.yaml", "--file=compose.monitoring.yaml"]
    compose = ["docker", "compose", project, *files]
    try:
        up = [*compose, "up", "--detach", "--no-deps", "--no-build", "gpu-metrics"]
        subprocess.run(up, cwd=ROOT, check=True, capture_output=True)
        written = [*compose, "exec", "gpu-metrics", "sh", "-c"]
        wait = "until test -s /textfile/ollama.prom; do sleep 0.1; done; cat /textfile/ollama.prom"
        done = subprocess.run([*written, wait], cwd=ROOT, capture_output=True, timeout=scaled(120))
        assert b"ollama_up 0.0" in done.stdout  # nobody listens there in this test
        assert promtool("check", "metrics", text=done.stdout) == ""
    finally:
        down = [*compose, "down", "--volumes", "--timeout", "0"]
        subprocess.run(down, cwd=ROOT, check=True, capture_output=True)


def queries() -> Iterator[tuple[str, str]]:
    """Every query of the dashboard, with what Grafana puts in for its variables."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$__rate_interval", "1m").replace("$node", ".*")
            yield panel["title"], expression
