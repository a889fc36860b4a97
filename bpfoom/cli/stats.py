# SPDX-License-Identifier: Apache-2.0
"""``bpfoom stats``: what handlers and triggers have done, counted, for people and Prometheus."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bpfoom.btf.types import Btf
from bpfoom.cli import output, trigger, view
from bpfoom.errors import BpfoomError, UsageError
from bpfoom.files import write_whole
from bpfoom.handler import pins
from bpfoom.observe import metrics
from bpfoom.observe.metrics import HandlerStats, Stats
from bpfoom.policy import latency

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

COLUMNS = {
    "cgroup": "CGROUP",
    "policy": "POLICY",
    "invocations": "CALLS",
    "handled": "HANDLED",
    "passed": "PASSED",
    "kills": "KILLS",
    "failed": "REFUSED",
    "mean": "MEAN",
    "p99": "99%",
    "longest": "LONGEST",
}
_LOOPBACK = "127.0.0.1"
_SIGNALS = {signal.SIGINT, signal.SIGTERM}


@click.command(name="stats")
@click.option("--openmetrics", is_flag=True, help="Print OpenMetrics text.")
@click.option(
    "--textfile",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write Prometheus text for node-exporter's textfile collector.",
)
@click.option(
    "--listen",
    metavar="[ADDRESS:]PORT",
    help="Serve both formats over HTTP until interrupted, by default on loopback only.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def stats_command(
    openmetrics: bool, textfile: Path | None, listen: str | None, as_json: bool
) -> None:
    """Count what handlers and triggers have done, and how long decisions took.

    \b
    Examples:
      bpfoom stats
      bpfoom stats --openmetrics
      bpfoom stats --textfile /var/lib/prometheus/node-exporter/bpfoom.prom
      bpfoom stats --listen 9778
    """
    if sum(map(bool, (openmetrics, textfile, listen, as_json))) > 1:
        raise UsageError("choose one of --openmetrics, --textfile, --listen and --json")
    address = parse_address(listen) if listen else None
    with _source() as source:
        if address:
            source()  # who may not look is told at once
            serve(_registry(_or_none(source)), *address)
        elif textfile:
            write_whole(textfile, _prometheus_text(_registry(source)))
        elif openmetrics:
            click.echo(_openmetrics_text(_registry(source)).decode(), nl=False)
        elif as_json:
            output.emit_json(fields(source()))
        else:
            _emit(source())


def parse_address(text: str) -> tuple[str, int]:
    """Address and port of ``9778``, ``0.0.0.0:9778`` or ``[::1]:9778``. Raises UsageError."""
    address, colon, port = text.rpartition(":")
    if not (port.isdecimal() and int(port) < 1 << 16) or (colon and not address):
        raise UsageError(f"--listen {text}: expected a port, or ADDRESS:PORT")
    return address.removeprefix("[").removesuffix("]") or _LOOPBACK, int(port)


@contextmanager
def _source() -> Iterator[Callable[[], Stats]]:
    """What reads the statistics anew, from one thread at a time."""
    with Btf.from_file() as btf:
        one_at_a_time = threading.Lock()

        def read() -> Stats:
            with one_at_a_time:
                return metrics.read(pins.find(), btf, view.cgroup_name)

        yield read


def _or_none(source: Callable[[], Stats]) -> Callable[[], Stats | None]:
    """The same, but a failure is said on stderr, and None."""

    def read() -> Stats | None:
        try:
            return source()
        except (BpfoomError, OSError) as error:
            click.echo(f"bpfoom: {error}", err=True)
            return None

    return read


def _registry(source: Callable[[], Stats | None]) -> CollectorRegistry:
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry()
    registry.register(metrics.Collector(source))
    return registry


def _openmetrics_text(registry: CollectorRegistry) -> bytes:
    from prometheus_client.exposition import choose_encoder

    encode, _ = choose_encoder("application/openmetrics-text; version=1.0.0")
    return encode(registry)


def _prometheus_text(registry: CollectorRegistry) -> bytes:
    from prometheus_client import generate_latest

    return generate_latest(registry)


def serve(registry: CollectorRegistry, address: str, port: int) -> None:
    """Answer HTTP requests until SIGINT or SIGTERM. Raises BpfoomError if it cannot listen."""
    from prometheus_client import start_http_server

    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # the server's thread has it, too
    try:
        server, thread = start_http_server(port, address, registry)
    except (OSError, UnicodeError) as error:  # the latter for what no host is called
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise BpfoomError(
            f"cannot listen on {address}, port {port}: {getattr(error, 'strerror', error)}",
            hint="name another port with --listen, or an address of this machine",
            errno=getattr(error, "errno", None),
        ) from error
    host, bound = server.server_address[:2]
    output.emit_now(f"serving http://{_url_host(str(host))}:{bound}/metrics")
    signal.sigwait(_SIGNALS)
    server.shutdown()
    server.server_close()
    thread.join()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def fields(stats: Stats) -> dict[str, Any]:
    """Everything, JSON-ready."""
    return {
        "recorded": stats.recorded,
        "bucket_ends_us": latency.limits_us(),
        "handlers": [_handler(one) for one in stats.handlers],
        "triggers": [view.trigger(found) for _, found in stats.triggers],
    }


def _handler(one: HandlerStats) -> dict[str, Any]:
    return {
        "cgroup": one.cgroup,
        "cgroup_id": one.handler.cgroup_id,
        "policy": one.handler.policy,
        "dry_run": one.handler.dry_run,
        "counters": dict(one.handler.counters),
        "policy_counters": dict(one.own),
        "durations": [{**asdict(h), "count": h.count} for h in one.latency],
    }


def _emit(stats: Stats) -> None:
    if stats.handlers:
        output.emit_table(COLUMNS, [row(one) for one in stats.handlers])
    else:
        click.echo("no handlers attached")
    if stats.triggers:
        click.echo("triggers:")
        found = (view.trigger(one) for _, one in stats.triggers)
        output.emit_table(trigger.COLUMNS, [trigger.row(one) for one in found])


def row(one: HandlerStats) -> dict[str, Any]:
    """A handler's statistics as a table's row."""
    counters = one.handler.counters
    count, spent = sum(h.count for h in one.latency), sum(h.sum_ns for h in one.latency)
    p99 = latency.quantile_us(one.latency, 0.99)
    longest = counters.get("max_ns")
    return {
        **counters,
        "cgroup": one.cgroup,
        "policy": one.handler.policy,
        "failed": one.own.get("failed"),
        "mean": output.duration(spent // count) if count else None,
        "p99": f"<{output.duration(p99 * 1000)}" if p99 else None,
        "longest": output.duration(longest) if longest else None,
    }
