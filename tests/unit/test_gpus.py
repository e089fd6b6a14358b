"""Whether a GPU is lost, as tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from probe.gpu_reading import GpuDevice, GpuFault, GpuReading
from probe.judge import gpu_wanted, judge
from probe.memory import Memory
from probe.observation import Observation
from probe.report import Reason, Remedy
from probe.settings import Settings
from tests.unit.rows import (
    ANY,
    EMPTY,
    FIRST,
    GPU,
    GPU_REQUIRED,
    HAD_GPU,
    NOW,
    UNANSWERED,
    USED_GPU,
    broken,
    check,
    device,
    model,
    reasons,
    run,
)

NONE_LEFT = GpuReading()
HANGS = broken(GpuFault.HANGS)
RESTARTED = Memory(gpus=("GPU-1",), used_gpus=("GPU-1",))
"""What is left of a memory after a restart of the container."""


@pytest.mark.parametrize(
    ("reading", "memory", "settings", "words"),
    [
        (NONE_LEFT, HAD_GPU, ANY, "no longer sees GPU-1"),
        (NONE_LEFT, RESTARTED, ANY, "no longer sees GPU-1"),
        (NONE_LEFT, FIRST, GPU_REQUIRED, "NVML sees no GPU: give the container one"),
        (
            GpuReading((device(uuid="MIG-1"),)),
            *(replace(HAD_GPU, gpus=("MIG-1", "MIG-2")), ANY, "no longer sees MIG-2"),
        ),
        *[
            (broken(fault), memory, ANY, words)
            for memory in (HAD_GPU, RESTARTED)
            for fault, words in [
                (GpuFault.UNKNOWN, "a restart gives it the device again"),
                (GpuFault.GPU_LOST, "must be reset"),
                (GpuFault.VERSION_MISMATCH, "the driver was updated"),
                (GpuFault.DRIVER_NOT_LOADED, "driver is not loaded"),
                (GpuFault.HANGS, "dmesg"),
                (GpuFault.OTHER, "nvidia-smi"),
            ]
        ],
        (broken(GpuFault.LIBRARY_MISSING), HAD_GPU, ANY, "a restart gives it to the container"),
        (broken(GpuFault.LIBRARY_MISSING), RESTARTED, ANY, "a restart gives it to the container"),
    ],
)
def test_a_gpu_is_lost_when_two_checks_in_a_row_find_so(
    reading: GpuReading, memory: Memory, settings: Settings, words: str
) -> None:
    one = check(model(), gpu=reading)
    verdicts, _ = run(one, one, one, memory=memory, settings=settings)
    assert reasons(verdicts) == ["ready", "gpu_lost", "gpu_lost"]
    assert words in verdicts[1].message
    assert verdicts[1].remedy is Remedy.RESTART


@pytest.mark.parametrize(
    "second", [GPU, broken(GpuFault.OTHER), NONE_LEFT], ids=["well", "another fault", "missing"]
)
def test_faults_that_are_not_alike_or_not_in_a_row_are_no_loss(second: GpuReading) -> None:
    one, two = check(model(), gpu=HANGS), check(model(), gpu=second)
    verdicts, _ = run(one, two, one, two, memory=HAD_GPU)
    assert reasons(verdicts) == ["ready"] * 4


def test_a_fault_found_once_is_a_reading() -> None:
    verdict, _ = judge(check(model(), gpu=HANGS), HAD_GPU, ANY, NOW)
    assert "found once" in str(verdict.readings["gpu"])


def test_a_fault_counts_at_once_where_nothing_can_be_remembered() -> None:
    """Docker wants three failures in a row anyway."""
    verdict, _ = judge(check(model(), gpu=HANGS), replace(FIRST, kept=False), GPU_REQUIRED, NOW)
    assert verdict.reason is Reason.GPU_LOST


def test_a_driver_that_fails_where_there_never_was_a_gpu_is_a_reading() -> None:
    """As where a machine without a GPU has NVML's library."""
    one = check(model(), gpu=broken(GpuFault.DRIVER_NOT_LOADED))
    verdicts, _ = run(one, one, one)
    assert reasons(verdicts) == ["ready"] * 3
    assert "Broken" in str(verdicts[-1].readings["gpu"])


@pytest.mark.parametrize(
    ("reading", "memory", "settings", "words"),
    [
        (broken(GpuFault.LIBRARY_MISSING), FIRST, ANY, "--gpus all"),
        (broken(GpuFault.DENIED), HAD_GPU, ANY, "may not use"),
        (
            GpuReading(hidden="CUDA_VISIBLE_DEVICES=-1"),
            *(FIRST, GPU_REQUIRED, "CUDA_VISIBLE_DEVICES=-1 hides every GPU"),
        ),
    ],
)
def test_what_only_a_setting_can_change_is_misconfigured_at_once(
    reading: GpuReading, memory: Memory, settings: Settings, words: str
) -> None:
    verdict, _ = judge(check(model(), gpu=reading), memory, settings, NOW)
    assert verdict.reason is Reason.MISCONFIGURED
    assert words in verdict.message


@pytest.mark.parametrize(
    ("observation", "reason"),
    [
        (Observation(api_error="refused"), "api_down"),
        (check(model(), to=(UNANSWERED,)), "stalled"),
        (check(model(), no_time="to ask"), "misconfigured"),
        (Observation(no_time="to ask the server", answered=False), "misconfigured"),
        (Observation(missing={"tiny": "no"}), "misconfigured"),
    ],
)
def test_what_can_be_healed_comes_before_what_only_a_setting_can_change(
    observation: Observation, reason: str
) -> None:
    denied = replace(observation, gpu=broken(GpuFault.DENIED))
    verdict, _ = judge(denied, USED_GPU, ANY, NOW)
    assert verdict.reason is Reason(reason)


def test_no_gpu_where_none_was_is_no_fault() -> None:
    verdicts, _ = run(*[check(model(), gpu=NONE_LEFT)] * 3)
    assert reasons(verdicts) == ["ready"] * 3


def test_what_cannot_be_asked_any_more_is_explained_by_what_was_lost() -> None:
    down = Observation(api_error="refused", gpu=broken(GpuFault.UNKNOWN))
    verdicts, _ = run(down, down, memory=HAD_GPU)
    assert reasons(verdicts) == ["api_down", "gpu_lost"]


NEW_CARD = GpuReading((device(uuid="GPU-2"),))


@pytest.mark.parametrize(
    "before",
    [
        (),
        (check(model(), gpu=None),),
        (check(model(), gpu=None, no_time="to read the GPU"),),
        (check(model(), gpu=HANGS),),
        (Observation(api_error="refused"),),
    ],
    ids=["read at once", "not read", "no time", "slow at first", "server not up yet"],
)
def test_a_card_that_was_replaced_before_a_restart_is_not_lost(
    before: tuple[Observation, ...],
) -> None:
    """A driver may need seconds at first: the first reading decides, not the first check."""
    verdicts, memory = run(*before, *[check(model(), gpu=NEW_CARD)] * 4, memory=RESTARTED)
    assert reasons(verdicts)[len(before) :] == ["ready"] * 4
    assert memory.gpus == ("GPU-2",)


def test_a_card_that_is_missing_after_a_restart_stays_lost_whatever_was_read_first() -> None:
    both = replace(RESTARTED, gpus=("GPU-1", "GPU-2"))
    one, unread = check(model(), gpu=GPU), check(model())
    verdicts, memory = run(unread, *[one] * 3, memory=both)
    assert reasons(verdicts) == ["ready", "ready", "gpu_lost", "gpu_lost"]
    assert memory.gpus == ("GPU-1", "GPU-2")


def test_a_card_that_is_replaced_while_the_container_runs_is_lost() -> None:
    verdicts, _ = run(*[check(model(), gpu=NEW_CARD)] * 2, memory=HAD_GPU)
    assert reasons(verdicts) == ["ready", "gpu_lost"]


def test_a_card_that_is_replaced_between_faults_of_the_driver_is_lost() -> None:
    broke = check(model(), gpu=HANGS)
    verdicts, _ = run(check(model(), gpu=GPU), broke, *[check(model(), gpu=NEW_CARD)] * 2)
    assert reasons(verdicts) == ["ready", "ready", "ready", "gpu_lost"]


def test_a_device_without_a_uuid_is_not_missed_by_its_number() -> None:
    first = GpuReading((GpuDevice("index-0", "card"), GpuDevice("index-1", "card")))
    second = GpuReading((GpuDevice("index-0", "card"),))
    verdicts, _ = run(check(model(), gpu=first), *[check(model(), gpu=second)] * 3)
    assert reasons(verdicts) == ["ready"] * 4


def test_nvml_that_says_nothing_of_a_jetson_is_no_fault() -> None:
    reading = replace(broken(GpuFault.LIBRARY_MISSING), tegra=True)
    verdicts, memory = run(*[check(model(), gpu=reading)] * 3, memory=RESTARTED)
    assert reasons(verdicts) == ["ready"] * 3
    assert memory.gpus == ("GPU-1",)
    assert "Jetson" in str(verdicts[0].readings["gpu"])
    assert judge(check(model(), gpu=reading), FIRST, ANY, NOW)[0].healthy


def test_of_a_gpu_that_was_used_nothing_is_said() -> None:
    verdict, _ = judge(check(model(), gpu=GPU), USED_GPU, ANY, NOW)
    assert "gpu" not in verdict.readings
    verdict, _ = judge(Observation(gpu=GPU), HAD_GPU, ANY, NOW)
    assert verdict.readings["gpu"] == "never used"


OLD_DRIVER = replace(GPU, driver="535.183.01")


@pytest.mark.parametrize(
    ("reading", "version", "settings", "reason", "said"),
    [
        (OLD_DRIVER, "0.30.11", ANY, "ready", True),
        (OLD_DRIVER, "0.30.11", GPU_REQUIRED, "misconfigured", True),
        (OLD_DRIVER, "0.30.10", GPU_REQUIRED, "ready", False),
        (OLD_DRIVER, "", GPU_REQUIRED, "ready", False),
        (OLD_DRIVER, "0.34.0-rc1", GPU_REQUIRED, "misconfigured", True),
        (replace(OLD_DRIVER, tegra=True), "0.33.0", GPU_REQUIRED, "ready", False),
        (replace(GPU, driver="550.54.15"), "0.33.0", GPU_REQUIRED, "ready", False),
        (replace(GPU, driver="1000.1"), "0.33.0", GPU_REQUIRED, "ready", False),
        (replace(GPU, driver="dev"), "0.33.0", GPU_REQUIRED, "ready", False),
    ],
)
def test_a_driver_older_than_the_server_wants_is_said_with_both_versions(
    reading: GpuReading, version: str, settings: Settings, reason: str, said: bool
) -> None:
    observation = check(model(), gpu=reading, version=version)
    verdict, _ = judge(observation, USED_GPU, settings, NOW)
    assert verdict.reason is Reason(reason)
    words = verdict.message + str(verdict.readings.get("driver", ""))
    assert (version in words and "535.183.01" in words) == said
    assert verdict.remedy is (Remedy.OPERATOR if reason == "misconfigured" else Remedy.NONE)


@pytest.mark.parametrize(
    ("gpu", "memory", "hint", "wanted"),
    [
        ("auto", FIRST, False, False),
        ("auto", FIRST, True, True),
        ("auto", HAD_GPU, False, True),  # it was there before: that it is gone is the fault
        ("auto", RESTARTED, False, True),
        ("required", FIRST, False, True),
        ("off", HAD_GPU, True, False),
    ],
)
def test_a_gpu_is_read_where_one_is_expected(
    gpu: str, memory: Memory, hint: bool, wanted: bool
) -> None:
    assert gpu_wanted(Settings(gpu=gpu), memory, hint) == wanted


@pytest.mark.parametrize(
    ("observation", "used"),
    [
        (check(model(), gpu=GPU), ("GPU-1",)),
        (Observation(gpu=GPU), ()),
        (check(model(), gpu=EMPTY), ()),  # the server says so, and NVML does not see it
        (check(model()), ()),
    ],
)
def test_a_gpu_counts_as_used_once_a_model_was_seen_there(
    observation: Observation, used: tuple[str, ...]
) -> None:
    _, memory = judge(observation, FIRST, ANY, NOW)
    assert memory.used_gpus == used
