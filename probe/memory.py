"""What one check leaves for the next, as plain data.

`memory_file.py` reads it back by the types of its fields: they are no text here.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ModelMemory:
    """What is known of one loaded model. Times are in seconds of the monotonic clock.

    Attributes:
        name: what it is called.
        runner: identity of the process that serves it; empty where that is not visible.
        expires_text: its expiry as the server wrote it at the end of the last check.
        expires_at: the same as a time.
        proven_at: when a token last proved it, to us or to a user; None: not yet.
        unshared_text: while its expiry is this, no user's conversation is in its prompt cache.
        own_tasks: numbers of our own last requests, by slot.
        tokens: how far each slot was at the end of the last check: slot, task, and tokens of the
            prompt and of the answer while it served that.
        nobodys: slots that worked for nobody at the last check: slot, task, and since when.
        runnable_seconds: its runner's at the end of the last check; None: not visible.
        cpu_seconds: the same.
        writes: the same.
        doubted_at: when something seemed to be wrong and it was asked for that; None: never.
        due_since: since when it has done nothing although its time is over; None: it did some work,
            its time is not over, or that is not known.
        silent_since: when its runner first said nothing, or gave no token; None: it last did.
        held_since: since when its runner holds up `/api/ps`; None: it did not at the last check.
        slow_checks: how many checks in a row have found it slow.
        vram_percent: the largest share of it that was in VRAM since it was loaded so.
        vram_bytes: what of it is in VRAM, as Ollama says.
        room_bytes: VRAM there was for it before its process started; None: not known.
        clamped: as `Model.clamped`.
        only_embeds: the model gives no tokens.
    """

    name: str = ""
    runner: str = ""
    expires_text: str = ""
    expires_at: float = 0.0
    proven_at: float | None = None
    unshared_text: str | None = None
    own_tasks: tuple[tuple[int, int], ...] = ()
    tokens: tuple[tuple[int, int, int], ...] | None = None
    nobodys: tuple[tuple[int, int, float], ...] = ()
    runnable_seconds: float | None = None
    cpu_seconds: float | None = None
    writes: int | None = None
    doubted_at: float | None = None
    due_since: float | None = None
    silent_since: float | None = None
    held_since: float | None = None
    slow_checks: int = 0
    vram_percent: float = 0.0
    vram_bytes: int = 0
    room_bytes: int | None = None
    clamped: bool | None = False
    only_embeds: bool = False


@dataclass(frozen=True)
class Served:
    """A model as it was last seen, loaded now or not.

    Attributes:
        name: what it is called.
        runner: identity of the process that served it last; empty where that was not visible.
        expires_text: its expiry as the server wrote it then; empty where it moves by itself.
        expires_in: seconds until that, from the beginning of the check.
    """

    name: str = ""
    runner: str = ""
    expires_text: str = ""
    expires_in: float = 0.0


@dataclass(frozen=True)
class Crashes:
    """Requests in a row, each of which has ended the runner of a model.

    Attributes:
        times: how many.
        at: when the last one did.
        of_users: one of them was a user's, and not ours.
    """

    times: int = 0
    at: float = 0.0
    of_users: bool = False


@dataclass(frozen=True)
class Load:
    """A load that is under way.

    Attributes:
        name: the model, or the file of its weights.
        since: when it was first seen.
        moved_at: when it was last seen to make progress.
        mark: how far it was then: seconds that its runner ran, and waited for a CPU, its own word
            of its progress, bytes read and held.
        runner: identity of the process; empty where it is not visible.
        grew_at: when it was last seen to read or to hold more, and not only to use CPU time.
        blocked_at: when it was last seen to wait for a disk or a driver; None: not since it moved.
        seen_at: when it was last seen; None: by no check yet.
    """

    name: str = ""
    since: float = 0.0
    moved_at: float = 0.0
    mark: tuple[float, ...] = ()
    runner: str = ""
    grew_at: float = 0.0
    blocked_at: float | None = None
    seen_at: float | None = None


@dataclass(frozen=True)
class SentLoad:
    """A load that a check asked for.

    Attributes:
        name: the required model.
        at: when.
        beside: the models that were loaded then, by name, with their expiries.
        tries: how often it was asked for without an answer.
        over: the load has ended, in whatever way, or does not show.
        runner: identity of the process that it began; empty where that is not known.
    """

    name: str
    at: float
    beside: dict[str, float] = field(default_factory=dict)
    tries: int = 0
    over: bool = False
    runner: str = ""


@dataclass(frozen=True)
class FailedLoad:
    """How loading a required model failed.

    Attributes:
        words: what the server said.
        first_at: when it first said so.
        last_at: when it was last tried.
        tries: how often it has said so.
        by_server: a fault of the server's, and not of what it was asked for.
    """

    words: str
    first_at: float
    last_at: float
    tries: int = 1
    by_server: bool = True


@dataclass(frozen=True)
class Episode:
    """Verdicts in a row that were alike.

    Attributes:
        began_at: the first of them, in seconds since 1970.
        ended_at: the last of them.
        checks: how many they were.
        healthy: what Docker was told.
        reason: why.
        message: the last one's words.
        remedy: what would help, as the last one said.
    """

    began_at: float
    ended_at: float
    checks: int
    healthy: bool
    reason: str
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class Memory:
    """What one check knows of those before it.

    Times are in seconds of the machine's monotonic clock, which no change of date moves.

    Attributes:
        kept: what this check leaves can be read by the next one.
        checked_at: when the last check began; None before the first in this container's life.
        no_time_since: when the first of the last checks in a row that ran out of time and learned
            nothing was judged; None when the last one learned something.
        proven: some check since the container's start found it ready, idle or busy.
        version: of the server; empty where it was not asked.
        gpus: UUIDs of the devices that were seen, before a restart of the container too.
        gpus_read: they have been read since the container's start.
        used_gpus: UUIDs of devices that this server has used for a model; the same.
        gpu_faults: how many checks in a row have found the same fault of the GPU.
        gpu_fault: which one.
        free_bytes: VRAM that was free at the last check; None: not known.
        load: the load that is under way; None when none is.
        listed: identities of runners that have served a listed model.
        unending: identities of processes that were killed and had not ended at the last check,
            with when they were first seen so.
        sent_load: the load that a check asked for last; None when none did.
        failed_loads: by name of the required model.
        evictions: pairs of models, of which loading the first ended the second.
        models: those that were loaded, by `LoadedModel.key`.
        waited_at: when a user was last seen to wait in vain; None: never.
        doubted_at: when models were last asked for that; None: never.
        served: by `LoadedModel.key`, models as they were last seen, loaded now or not.
        crashes: by `LoadedModel.key`, requests in a row that have ended its runner.
        vram_percents: by shape of model and options, the largest share that was in VRAM.
        ended: when checks have ended a runner.
        server_ended: identity of the server that a check has asked to end; empty: none has.
        server_ended_at: when.
        server_killed_at: when it was made to end; None: it was not.
        fault_since: when the first of the last checks in a row that found a fault was judged; None
            when the last one found none.
        fault_checks: how many they were.
        restart_checks: how many checks in a row have found that a restart would help.
        failed: Docker was told by the last of them that the server is unhealthy.
        suspect: identity of the runner whose end the last checks in a row have asked for.
        suspect_checks: how many they were.
        certain_at: when the last of them was judged, if it was certain and needs no other; None
            where it was not.
        certain_counts: what its runner had used when that one began: seconds of CPU time, seconds
            of waiting for a CPU, bytes read.
        episodes: the last verdicts, oldest first.
    """

    kept: bool = True
    checked_at: float | None = None
    no_time_since: float | None = None
    proven: bool = False
    version: str = ""
    gpus: tuple[str, ...] = ()
    gpus_read: bool = False
    used_gpus: tuple[str, ...] = ()
    gpu_faults: int = 0
    gpu_fault: str = ""
    free_bytes: int | None = None
    load: Load | None = None
    listed: tuple[str, ...] = ()
    unending: dict[str, float] = field(default_factory=dict)
    sent_load: SentLoad | None = None
    failed_loads: dict[str, FailedLoad] = field(default_factory=dict)
    evictions: tuple[tuple[str, str], ...] = ()
    models: dict[str, ModelMemory] = field(default_factory=dict)
    waited_at: float | None = None
    doubted_at: float | None = None
    served: dict[str, Served] = field(default_factory=dict)
    crashes: dict[str, Crashes] = field(default_factory=dict)
    vram_percents: dict[str, float] = field(default_factory=dict)
    ended: tuple[float, ...] = ()
    server_ended: str = ""
    server_ended_at: float = 0.0
    server_killed_at: float | None = None
    restart_checks: int = 0
    fault_since: float | None = None
    fault_checks: int = 0
    failed: bool = False
    suspect: str = ""
    suspect_checks: int = 0
    certain_at: float | None = None
    certain_counts: tuple[float, ...] = ()
    episodes: tuple[Episode, ...] = ()
