"""Any memory and any observation, for properties that hold for all of them."""

from __future__ import annotations

from hypothesis import strategies as st

from probe.gpu_reading import GpuDevice, GpuFault, GpuReading
from probe.memory import Crashes, Episode, FailedLoad, Load, Memory, ModelMemory, SentLoad, Served
from probe.observation import (
    Answer,
    Ask,
    Asked,
    CommandLine,
    Dialect,
    LoadedModel,
    Model,
    Observation,
    Runner,
    RunnerHealth,
    Slot,
    Unending,
)
from probe.report import Reason
from probe.settings import Settings

NAMES = ("tiny:latest", "other:latest", "tiny")
KEYS = ("d1", "d2", "tiny:latest")
IDENTITIES = ("7/1", "8/1", "")

texts = st.sampled_from(("", "then", "later")) | st.text(max_size=4)
names, keys = st.sampled_from(NAMES), st.sampled_from(KEYS)
numbers = st.floats(-1e12, 1e12)
times = st.floats(0, 1e5)
moments = st.sampled_from((0.0, 9_000.0, 9_985.0, 10_000.0, 10_200.0, 9e9)) | numbers
counts = st.integers(0, 12)
sizes = st.sampled_from((0, 1, 8 << 30, 20 << 30)) | st.integers(0, 1 << 42)
maybe = st.none()
uuids = st.sampled_from(("GPU-1", "GPU-2", "index-0"))
identities = st.sampled_from(IDENTITIES)
marks = st.tuples(counts, counts, st.integers(-1, 99))

model_memories = st.builds(
    ModelMemory,
    name=names,
    runner=identities,
    expires_text=texts,
    expires_at=moments,
    proven_at=maybe | moments,
    unshared_text=maybe | texts,
    own_tasks=st.lists(st.tuples(counts, counts), max_size=2).map(tuple),
    tokens=maybe | st.lists(marks, max_size=2).map(tuple),
    nobodys=st.lists(st.tuples(counts, counts, moments), max_size=2).map(tuple),
    runnable_seconds=maybe | times,
    writes=maybe | counts,
    doubted_at=maybe | moments,
    due_since=maybe | moments,
    silent_since=maybe | moments,
    slow_checks=counts,
    vram_percent=st.floats(0, 100),
    vram_bytes=sizes,
    room_bytes=maybe | sizes,
    clamped=st.none() | st.booleans(),
)
failed_loads = st.builds(
    FailedLoad,
    words=st.sampled_from(("", "invalid magic", "cudaMalloc failed", "odd")),
    first_at=moments,
    last_at=moments,
    tries=st.integers(1, 10**6),
    by_server=st.booleans(),
)
episodes = st.builds(
    Episode,
    began_at=numbers,
    ended_at=numbers,
    checks=st.integers(1, 9),
    healthy=st.booleans(),
    reason=st.sampled_from([str(reason) for reason in Reason]),
    message=texts,
)
memories = st.builds(
    Memory,
    checked_at=maybe | moments,
    no_time_since=maybe | moments,
    proven=st.booleans(),
    version=st.sampled_from(("", "0.33.0", "odd")),
    gpus=st.lists(uuids, max_size=2, unique=True).map(tuple),
    gpus_read=st.booleans(),
    used_gpus=st.lists(uuids, max_size=2, unique=True).map(tuple),
    gpu_faults=counts,
    gpu_fault=st.sampled_from(("", "missing", *map(str, GpuFault))),
    free_bytes=maybe | sizes,
    load=maybe | st.builds(Load, names, moments, moments, st.lists(numbers, max_size=4).map(tuple)),
    listed=st.lists(identities, max_size=2).map(tuple),
    unending=st.dictionaries(identities, moments, max_size=2),
    sent_load=maybe
    | st.builds(SentLoad, names, moments, st.dictionaries(names, moments, max_size=2)),
    failed_loads=st.dictionaries(names, failed_loads, max_size=2),
    evictions=st.lists(st.tuples(names, names), max_size=2).map(tuple),
    served=st.dictionaries(keys, st.builds(Served, names, identities, texts), max_size=2),
    crashes=st.dictionaries(keys, st.builds(Crashes, counts, moments, st.booleans()), max_size=2),
    models=st.dictionaries(keys, model_memories, max_size=2),
    waited_at=maybe | moments,
    doubted_at=maybe | moments,
    vram_percents=st.dictionaries(texts, st.floats(0, 100), max_size=2),
    episodes=st.lists(episodes, max_size=2).map(tuple),
)

slots = st.builds(
    Slot,
    id=counts,
    is_processing=st.booleans(),
    task=maybe | counts,
    prompt_tokens=counts,
    decoded_tokens=counts,
    held_tokens=st.none() | counts,
)
commands = st.builds(
    CommandLine,
    dialect=st.sampled_from(Dialect),
    port=maybe | st.just(4000),
    weights=texts,
    model=texts,
    num_ctx=maybe | counts,
    num_batch=maybe | counts,
    num_thread=maybe | counts,
    num_gpu=maybe | counts,
    parallel=maybe | counts,
    embedding=st.booleans(),
    options_visible=st.booleans(),
)
runners = st.builds(
    Runner,
    pid=st.sampled_from((7, 8)),
    started=st.just(1),
    command=commands,
    blob_bytes=maybe | sizes,
    default_threads=st.booleans(),
    cpu_seconds=times,
    queued_seconds=times,
    runnable=st.booleans(),
    writes=maybe | counts,
    read_bytes=maybe | sizes,
    memory_bytes=sizes,
)
rows = st.builds(
    LoadedModel,
    name=names,
    size_bytes=sizes,
    size_vram_bytes=sizes,
    expires_at=moments,
    expires_text=texts,
    context_length=maybe | counts,
    digest=st.sampled_from(("", "d1", "d2")),
)
healths = st.builds(
    RunnerHealth,
    state=st.sampled_from(("ready", "loading", "silent", "gone", "unknown")),
    progress=maybe | st.floats(0, 1),
    slots=maybe | st.lists(slots, max_size=2).map(tuple),
)
models = st.builds(
    Model,
    row=rows,
    runner=maybe | runners,
    health=maybe | healths,
    gone=st.booleans(),
    exits=st.booleans(),
    silent_seconds=st.floats(0, 10),
    runnable_seconds=maybe | st.floats(0, 10),
    clamped=st.none() | st.booleans(),
)
answers = st.builds(
    Answer,
    outcome=st.sampled_from(("token", "silent", "error")),
    seconds=st.floats(0, 10),
    tokens_per_second=maybe | st.floats(0, 1000),
    status=maybe | st.sampled_from((200, 400, 404, 500, 503)),
    message=texts,
    embedding=st.booleans(),
)
asks = st.builds(
    Ask,
    via=st.sampled_from(("runner", "server")),
    tokens=st.integers(0, 2),
    slot=maybe | counts,
    keep=st.booleans(),
)
requests = st.builds(
    Asked,
    ask=asks,
    answer=answers,
    runnable_seconds=maybe | st.floats(0, 10),
    slots=maybe | st.lists(slots, max_size=2).map(tuple),
    row=maybe | rows,
    runner=maybe | runners,
    ended=st.booleans(),
)
devices = st.builds(
    GpuDevice,
    uuid=uuids,
    name=st.just("card"),
    memory_total_bytes=maybe | sizes,
    memory_used_bytes=maybe | sizes,
    utilization_percent=maybe | st.integers(0, 100),
)
gpus = st.builds(
    GpuReading,
    devices=st.lists(devices, max_size=2).map(tuple),
    fault=maybe | st.sampled_from(GpuFault),
    error=texts,
    hidden=maybe | st.just("CUDA_VISIBLE_DEVICES=-1"),
    partial=st.booleans(),
    driver=maybe | st.sampled_from(("535.1", "550", "odd")),
    held=maybe | st.dictionaries(st.sampled_from((7, 8)), sizes, max_size=2),
    tegra=st.booleans(),
)
endings = st.builds(Unending, identities, texts, st.booleans(), texts)
observations = st.builds(
    Observation,
    began_at=moments,
    clock=st.floats(0, 2e9),
    gpu=maybe | gpus,
    in_vain_seconds=st.floats(0, 900),
    api_error=maybe | texts,
    held_by=st.lists(models, max_size=2).map(tuple),
    no_time=st.sampled_from(("", "to ask")),
    answered=st.booleans(),
    models=st.lists(models, max_size=3).map(tuple),
    loading=st.lists(st.tuples(runners, healths), max_size=2).map(tuple),
    strays=st.integers(0, 2),
    unending=st.lists(endings, max_size=2).map(tuple),
    clients=maybe | st.booleans(),
    missing=st.dictionaries(names, st.sampled_from(("yes", "no", "cloud")), max_size=2),
    load=maybe | st.tuples(names, answers),
    asked=st.dictionaries(keys, st.lists(requests, max_size=2).map(tuple), max_size=2),
    version=st.sampled_from(("", "0.9.3", "0.33.0", "odd")),
)
settings = st.builds(
    Settings,
    models=st.lists(names, max_size=2).map(tuple),
    gpu=st.sampled_from(("auto", "required", "off")),
    generate=st.sampled_from(("auto", "always", "never")),
    busy_timeout=maybe | st.just(60.0),
    nobody_timeout=maybe | st.just(60.0),
    stopping_timeout=st.sampled_from((60.0, 120.0)),
    min_vram=maybe | st.floats(0.1, 100),
    min_tokens_per_second=maybe | st.just(5.0),
)
