"""Metric families for Prometheus out of plain rows, by its client library."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Row = tuple[Mapping[str, str], float | None]
"""Labels and a value; None for a value that there is not."""


class Families(Collector):
    """Whatever a function yields each time that the metrics are asked for."""

    def __init__(self, families: Callable[[], Iterable[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families()


def gauge(name: str, text: str, rows: Iterable[Row]) -> Iterator[Metric]:
    """What goes up and down; nothing where there is no value."""
    return _family(GaugeMetricFamily, name, text, rows)


def counter(name: str, text: str, rows: Iterable[Row]) -> Iterator[Metric]:
    """What only goes up; its name without `_total`."""
    return _family(CounterMetricFamily, name, text, rows)


def _family(
    kind: type[GaugeMetricFamily | CounterMetricFamily], name: str, text: str, rows: Iterable[Row]
) -> Iterator[Metric]:
    given = [(labels, value) for labels, value in rows if value is not None]
    if given:
        family = kind(name, text, labels=list(given[0][0]))
        for labels, value in given:
            family.add_metric(list(labels.values()), value)
        yield family
