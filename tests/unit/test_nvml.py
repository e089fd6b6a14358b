"""Which GPUs Ollama may use, and what a reading takes from NVML."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from probe import nvml
from probe.gpu_reading import MADE_UP_UUID, GpuDevice, GpuFault, GpuReading
from probe.nvml import (
    has_device_node,
    has_driver_library,
    has_other_gpus,
    hidden_by,
    is_tegra,
    visible,
)
from probe.processes import HOST_PID_NAMESPACE
from testbed.nvml import Nvml

A, B = GpuDevice("GPU-aa-1", "card"), GpuDevice("GPU-bb-2", "card")
OTHER = GpuDevice("GPU-cc-3", "another card")
SLICE = GpuDevice("MIG-dd-4", "card MIG 1g.10gb")
NO_UUID = GpuDevice(f"{MADE_UP_UUID}0", "card")
OTHERS_NAMESPACE = "pid:[4026532000]"


@pytest.mark.parametrize(
    ("chosen", "devices", "expected"),
    [
        (None, (A, B), (A, B)),
        ("0", (A, B), (A,)),
        ("1", (A, B), (B,)),
        ("1,0", (A, B), (B, A)),
        ("GPU-bb", (A, B), (B,)),
        ("GPU-bb-2,GPU-aa-1", (A, B), (B, A)),
        ("MIG-dd", (A, SLICE), (SLICE,)),
        ("0", (SLICE,), (SLICE,)),
        # CUDA ignores everything after an unknown entry
        ("0,7,1", (A, B), (A,)),
        ("GPU-zz,0", (A, B), ()),
        # CUDA numbers different models by speed, which NVML does not give
        ("1", (A, OTHER), (A, OTHER)),
        # a UUID may mean a device that does not give its own
        ("GPU-bb", (NO_UUID,), (NO_UUID,)),
        ("0", (NO_UUID,), (NO_UUID,)),
    ],
)
def test_ollama_uses_the_gpus_that_cuda_visible_devices_leaves_to_it(
    chosen: str | None, devices: tuple[GpuDevice, ...], expected: tuple[GpuDevice, ...]
) -> None:
    env = {} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen}
    assert visible(devices, env) == expected


def test_an_index_counts_by_slot_with_cuda_device_order_pci_bus_id() -> None:
    env = {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert visible((A, OTHER), env) == (OTHER,)


@pytest.mark.parametrize(
    ("env", "hidden"),
    [
        ({}, None),
        ({"CUDA_VISIBLE_DEVICES": "0"}, None),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, "CUDA_VISIBLE_DEVICES=-1"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES="),
        ({"OLLAMA_LLM_LIBRARY": "cpu_avx2"}, "OLLAMA_LLM_LIBRARY=cpu_avx2"),
        ({"OLLAMA_LLM_LIBRARY": "cuda_v12"}, None),
    ],
)
def test_a_setting_that_hides_every_gpu_from_ollama_is_found(
    env: dict[str, str], hidden: str | None
) -> None:
    assert hidden_by(env) == hidden


def reading(nvml: Nvml, details: bool = False, root: str = "", **env: str) -> GpuReading:
    """Read the stand-in with the real pynvml, in a process of its own."""
    script = (
        "import os, pickle, sys\nfrom probe.nvml import read\n"
        f"found = read(os.environ, details={details}, root={root!r})\n"
        "sys.stdout.buffer.write(pickle.dumps(found))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "LD_LIBRARY_PATH": str(nvml.directory), **env},
        stdout=subprocess.PIPE,
        check=True,
    )
    result = pickle.loads(done.stdout)
    assert isinstance(result, GpuReading)
    return result


RENDER_NODE = "/dev/dri/renderD128"
VENDOR = "/sys/class/drm/renderD128/device/vendor"


class Machine:
    """The files of a machine or container that the probe inspects."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)

    def add(self, *paths: str, text: str = "") -> Machine:
        for path in paths:
            file = Path(self.root + path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return self

    def in_pid_namespace(self, name: str) -> Machine:
        link = Path(f"{self.root}/proc/self/ns/pid")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(name)
        return self


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "root")


def test_memory_is_read_as_nvidia_smi_reads_it_without_the_drivers_reserve(nvml: Nvml) -> None:
    nvml.answer("device GPU-1 24576 9000 42", "reserved 300")
    name = "Simulated GPU"
    assert reading(nvml).devices == (GpuDevice("GPU-1", name, 24576 << 20, 9000 << 20, 42),)


def test_details_are_temperature_power_errors_and_processes(nvml: Nvml) -> None:
    nvml.answer(
        *("device GPU-1 24576 9000 42", "detail 61 210500 350000 2 44"),
        *(f"process {os.getpid()} 8000 30", "device GPU-2 24576 0 0"),
    )
    found = reading(nvml, details=True)
    first, second = found.devices
    assert (first.temperature_celsius, first.power_draw_watts) == (61, 210.5)
    assert (first.power_limit_watts, first.ecc_errors, first.index) == (350, 2, 0)
    assert first.throttle_reasons == ("power_cap", "hardware_thermal")
    assert first.processes is not None
    [process] = first.processes
    assert (process.pid, process.memory_bytes) == (os.getpid(), 8000 << 20)
    assert process.utilization_percent == 30
    # what a device does not give is None
    assert (second.temperature_celsius, second.power_draw_watts) == (None, None)
    assert (second.ecc_errors, second.throttle_reasons, second.processes) == (None, None, ())
    assert (second.index, found.driver) == (1, "550.54.15")


def test_an_old_driver_without_the_newer_calls_is_read(nvml: Nvml) -> None:
    nvml.answer("device GPU-1 24576 9000 42", "reserved 300", "old")
    [device] = reading(nvml).devices
    assert device.memory_used_bytes == 9300 << 20


def test_mig_slices_replace_their_device(nvml: Nvml) -> None:
    nvml.answer("device GPU-1 80000 0 0", "slice MIG-1 10000 500", "slice MIG-2 10000 0")
    found = reading(nvml)
    assert [d.uuid for d in found.devices] == ["MIG-1", "MIG-2"]
    assert found.devices[0].utilization_percent is None
    assert (found.memory_total_bytes, found.memory_used_bytes) == (20000 << 20, 500 << 20)
    assert [d.uuid for d in reading(nvml, CUDA_VISIBLE_DEVICES="MIG-2").devices] == ["MIG-2"]


def test_a_device_without_memory_of_its_own_has_no_memory_reading(nvml: Nvml) -> None:
    nvml.answer("device GPU-1 24576 9000 0", "unified GPU-2")
    found = reading(nvml)
    assert found.devices[1].memory_total_bytes is None
    assert found.memory_used_bytes is None


def test_a_device_with_unified_memory_gives_all_else_and_what_each_process_holds(
    nvml: Nvml, machine: Machine
) -> None:
    nvml.answer("unified GPU-1", f"process {os.getpid()} 61", "driver 580.126.09")
    found = reading(nvml, root=machine.in_pid_namespace(HOST_PID_NAMESPACE).root)
    name = "Simulated GPU"
    assert found.devices == (GpuDevice("GPU-1", name, utilization_percent=0),)
    assert (found.fault, found.driver) == (None, "580.126.09")
    assert (found.memory_used_bytes, found.held) == (None, {os.getpid(): 61 << 20})


def test_a_device_without_a_uuid_is_named_by_its_place(nvml: Nvml) -> None:
    nvml.answer("device - 24576 0 0", "device - 24576 0 0", "device GPU-3 24576 0 0")
    found = reading(nvml)
    assert found.fault is None
    assert [(d.uuid, d.has_uuid) for d in found.devices] == [
        ("index-0", False),
        ("index-1", False),
        ("GPU-3", True),
    ]
    nvml.answer("device GPU-1 80000 0 0", "slice - 10000 0", "slice - 10000 0")
    assert [d.uuid for d in reading(nvml).devices] == ["index-0-slice-0", "index-0-slice-1"]


def test_every_reading_has_the_drivers_version_where_nvml_gives_it(nvml: Nvml) -> None:
    nvml.answer("device GPU-1 24576 0 0", "driver 535.183.01")
    assert reading(nvml).driver == "535.183.01"
    nvml.answer("device GPU-1 24576 0 0", "driver -")
    found = reading(nvml)
    assert (found.driver, found.fault) == (None, None)


def test_what_each_process_holds_is_summed_over_all_devices(nvml: Nvml, machine: Machine) -> None:
    ours, parent = os.getpid(), os.getppid()
    nvml.answer(
        *("device GPU-1 24576 0 0", f"process {ours} 8000", f"process {parent} 100"),
        *("device GPU-2 24576 0 0", f"process {ours} 500"),
        *("device GPU-3 80000 0 0", "slice MIG-1 10000 0"),
    )
    root = machine.in_pid_namespace(HOST_PID_NAMESPACE).root
    expected = {ours: 8500 << 20, parent: 100 << 20}
    assert reading(nvml, root=root).held == expected
    assert reading(nvml, root=root, details=True).held == expected
    nvml.answer("device GPU-1 24576 0 0")
    assert reading(nvml, root=root).held == {}


def test_what_each_process_holds_is_not_read_in_another_pid_namespace(
    nvml: Nvml, machine: Machine
) -> None:
    nvml.answer("device GPU-1 24576 0 0", f"process {os.getpid()} 8000")
    assert reading(nvml, root=machine.in_pid_namespace(OTHERS_NAMESPACE).root).held is None


@pytest.mark.parametrize("answer", ["unlisted", f"process 1 {2**32 - 1}"])
def test_what_each_process_holds_is_unknown_where_one_device_does_not_give_it(
    nvml: Nvml, machine: Machine, answer: str
) -> None:
    nvml.answer("device GPU-1 24576 0 0", f"process {os.getpid()} 8000", "unified GPU-2", answer)
    found = reading(nvml, root=machine.in_pid_namespace(HOST_PID_NAMESPACE).root)
    assert (found.held, found.fault) == (None, None)


def test_a_device_that_does_not_list_its_processes_has_none_of_them_in_details(nvml: Nvml) -> None:
    nvml.answer("device GPU-1 24576 0 0", "unlisted")
    [device] = reading(nvml, details=True).devices
    assert device.processes is None


def test_a_device_of_another_container_is_left_out(nvml: Nvml) -> None:
    nvml.answer("broken 4", "device GPU-1 24576 9000 0")
    assert [d.uuid for d in reading(nvml).devices] == ["GPU-1"]
    nvml.answer("broken 4")
    assert reading(nvml).fault is GpuFault.DENIED


@pytest.mark.parametrize(
    ("answer", "fault", "words"),
    [
        ("error 999", GpuFault.UNKNOWN, "NVML: Unknown Error"),
        ("error 9", GpuFault.DRIVER_NOT_LOADED, "NVML: Driver Not Loaded"),
        (
            "error 18",
            GpuFault.VERSION_MISMATCH,
            "NVML: RM has detected an NVML/RM version mismatch",
        ),
        ("error 4", GpuFault.DENIED, "NVML: Insufficient Permissions"),
        ("error 10", GpuFault.OTHER, "NVML: "),
        ("broken 15", GpuFault.GPU_LOST, "NVML, GPU 0: GPU is lost"),
    ],
)
def test_each_nvml_error_has_its_own_fault(
    nvml: Nvml, answer: str, fault: GpuFault, words: str
) -> None:
    nvml.answer(answer)
    found = reading(nvml)
    assert found.fault is fault
    assert words in found.error


def test_a_container_without_the_library_reports_it_missing(tmp_path: Path) -> None:
    found = reading(Nvml(tmp_path), LD_LIBRARY_PATH="/nowhere")
    assert found.fault is GpuFault.LIBRARY_MISSING


@pytest.mark.parametrize(
    ("answers", "files", "rest"),
    [
        (["device GPU-1 24576 9000 0"], [], True),
        (["device GPU-1 24576 9000 4", "broken 4"], [], True),  # that one is not given to us
        (["device GPU-1 24576 9000 5"], [], False),
        (["device GPU-1 80000 0 0", "slice MIG-1 10000 500"], [], False),
        (["device GPU-1 24576 9000 0"], [RENDER_NODE], False),
        (["device GPU-1 24576 9000 0"], ["/dev/nvmap"], False),
        (["device GPU-1 24576 9000 0"], ["/dev/dxg"], False),
        ([], [], False),
        (["error 999"], [], False),
    ],
)
def test_gpus_rest_where_all_that_ollama_may_use_are_seen_and_none_works(
    nvml: Nvml, machine: Machine, answers: list[str], files: list[str], rest: bool
) -> None:
    nvml.answer(*answers)
    assert reading(nvml, root=machine.add(*files).root).rest is rest


def test_a_gpu_that_is_hidden_from_cuda_may_work_through_vulkan(nvml: Nvml) -> None:
    nvml.answer("device GPU-1 24576 9000 0", "device GPU-2 24576 9000 97")
    found = reading(nvml, CUDA_VISIBLE_DEVICES="0")
    assert ([d.uuid for d in found.devices], found.rest) == (["GPU-1"], False)


def _words(nvml: Nvml, script: str) -> list[str]:
    """What a script prints that reads the stand-in in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "LD_LIBRARY_PATH": str(nvml.directory)},
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout.split()


def test_a_read_that_was_late_is_the_next_ones_reading(nvml: Nvml) -> None:
    """Whoever had less time for it has not lost it for the other."""
    nvml.answer("hang 2", "device GPU-1 24576 9000 0")
    script = (
        "import os\nfrom probe.nvml import BackgroundRead\n"
        "print(BackgroundRead(os.environ).result(0).fault)\n"
        "print(BackgroundRead(os.environ).result(60).devices[0].uuid)\n"
    )
    assert _words(nvml, script) == ["hangs", "GPU-1"]


def test_while_a_read_hangs_no_other_is_started(nvml: Nvml) -> None:
    nvml.answer("hang 60")
    script = (
        "import os, threading\nfrom probe.nvml import BackgroundRead\n"
        "for _ in range(3):\n    print(BackgroundRead(os.environ).result(0.2).fault)\n"
        "print(threading.active_count(), flush=True)\nos._exit(0)\n"
    )
    assert _words(nvml, script) == ["hangs", "hangs", "hangs", "2"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/dev/nvhost-ctrl-gpu", ""),
        ("/dev/nvmap", ""),
        ("/dev/nvgpu/igpu0/ctrl", ""),
        ("/usr/lib/aarch64-linux-gnu/tegra/libcuda.so.1", ""),
        ("/etc/nv_tegra_release", "# R36 (release), REVISION: 4.3"),
        ("/sys/devices/soc0/family", "Tegra\n"),
    ],
)
def test_a_jetson_is_recognised(machine: Machine, path: str, text: str) -> None:
    assert not is_tegra(machine.root)
    assert is_tegra(machine.add(path, text=text).root)


def test_another_soc_is_no_jetson(machine: Machine) -> None:
    machine.add("/sys/devices/soc0/family", text="Snapdragon\n").add("/dev/nvidia0")
    assert not is_tegra(machine.root)


@pytest.mark.parametrize(
    ("answer", "inconclusive"),
    [
        ("error 9", True),  # the driver of discrete GPUs is not loaded
        ("error 13", True),  # the library does not have the function
        ("error 3", True),
        ("", True),
        ("error 999", False),
        ("broken 15", False),
        ("unified -", False),
    ],
)
def test_on_a_jetson_an_absent_or_incomplete_nvml_says_nothing_about_the_gpu(
    nvml: Nvml, machine: Machine, answer: str, inconclusive: bool
) -> None:
    nvml.answer(answer)
    assert not reading(nvml, root=machine.root).inconclusive
    found = reading(nvml, root=machine.add("/dev/nvmap").root)
    assert (found.tegra, found.inconclusive) == (True, inconclusive)


def test_on_a_jetson_a_missing_library_says_nothing_about_the_gpu(
    tmp_path: Path, machine: Machine
) -> None:
    found = reading(Nvml(tmp_path), root=machine.add("/dev/nvmap").root, LD_LIBRARY_PATH="/nowhere")
    assert (found.fault, found.inconclusive) == (GpuFault.LIBRARY_MISSING, True)


@pytest.mark.parametrize(
    ("vendor", "env", "other"),
    [
        ("0x1002", {}, True),
        ("0x8086", {}, True),
        (None, {}, True),  # a vendor that sysfs does not give may be any
        ("0x10de", {}, False),  # CDI adds NVIDIA's own
        ("0x10de", {"OLLAMA_VULKAN": "1"}, False),
        ("0x1002", {"OLLAMA_VULKAN": "1"}, True),
        ("0x1002", {"OLLAMA_VULKAN": "0"}, False),
        ("0x1002", {"OLLAMA_VULKAN": "False"}, False),
        ("0x1002", {"OLLAMA_VULKAN": ""}, True),
        ("0x1002", {"GGML_VK_VISIBLE_DEVICES": "-1"}, False),
    ],
)
def test_vulkan_may_use_a_gpu_with_a_render_node_that_is_not_nvidias(
    machine: Machine, vendor: str | None, env: dict[str, str], other: bool
) -> None:
    machine.add(RENDER_NODE)
    if vendor is not None:
        machine.add(VENDOR, text=f"{vendor}\n")
    assert has_other_gpus(env, machine.root) is other


def test_without_a_render_node_no_setting_makes_vulkan_use_a_gpu(machine: Machine) -> None:
    machine.add(VENDOR, text="0x1002\n").add("/dev/dri/card0")
    assert not has_other_gpus({"OLLAMA_VULKAN": "1"}, machine.root)


def test_amds_driver_may_use_a_gpu_without_vulkan(machine: Machine) -> None:
    assert has_other_gpus({"OLLAMA_VULKAN": "0"}, machine.add("/dev/kfd").root)


def test_memory_is_unknown_where_ollama_may_use_another_makers_gpu(
    nvml: Nvml, machine: Machine
) -> None:
    found = reading(nvml, root=machine.add(RENDER_NODE).root)
    assert (found.partial, found.memory_total_bytes) == (True, None)
    found = reading(nvml, root=machine.add(VENDOR, text="0x10de\n").root)
    assert (found.partial, found.memory_total_bytes) == (False, 24576 << 20)


CDI = {"NVIDIA_VISIBLE_DEVICES": "void"}
ALL = {"NVIDIA_VISIBLE_DEVICES": "all"}
"""What Ollama's image sets, on machines without a GPU too."""


@pytest.mark.parametrize(
    "library",
    [
        "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
        "/usr/lib/aarch64-linux-gnu/libnvidia-ml.so.1",
        "/usr/lib/aarch64-linux-gnu/nvidia/libnvidia-ml.so.1",
        "/usr/lib64/libnvidia-ml.so.1",
    ],
)
def test_a_gpu_given_by_cdi_is_found_by_its_library_and_its_device_node(
    machine: Machine, library: str
) -> None:
    assert not has_driver_library(CDI, machine.root)
    assert not has_device_node(machine.root)
    machine.add(library, "/dev/nvidia0", "/dev/nvidiactl", RENDER_NODE)
    machine.add(VENDOR, text="0x10de\n")
    assert has_driver_library(CDI, machine.root)
    assert has_device_node(machine.root)
    assert not has_other_gpus(CDI, machine.root)


@pytest.mark.parametrize("env", [CDI, ALL, {"NVIDIA_VISIBLE_DEVICES": "GPU-zz"}])
def test_nvidia_visible_devices_is_no_evidence(machine: Machine, env: dict[str, str]) -> None:
    assert not has_driver_library(env, machine.root)
    assert hidden_by(env) is None
    assert visible((A, B), env) == (A, B)


def test_the_library_is_also_found_in_ld_library_path(machine: Machine) -> None:
    machine.add("/opt/driver/libnvidia-ml.so.1")
    assert has_driver_library({"LD_LIBRARY_PATH": "/nowhere::/opt/driver"}, machine.root)


def test_a_bug_of_the_probe_is_not_taken_for_a_gpu_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*args: object, **options: object) -> None:
        raise AttributeError("a bug")

    monkeypatch.setattr(nvml, "read", fails)
    with pytest.raises(AttributeError, match="a bug"):
        nvml.BackgroundRead({}).result(10)
