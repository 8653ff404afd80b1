"""Values of each kind, for records with known numbers."""

from sdbench.records import Value


def score(name: str, unit: str, value: float, low: float, high: float, **more: object) -> Value:
    plain = {"name": name, "kind": "score", "direction": "higher", "unit": unit, "value": value, "low": low, "high": high, "n": 256}
    return Value.model_validate({**plain, **more})


def probe(name: str, unit: str, value: float, low: float | None = None, high: float | None = None, **more: object) -> Value:
    return Value.model_validate(
        {"name": name, "kind": "probe", "direction": "lower", "unit": unit, "value": value, "low": low, "high": high, "n": 40, **more}
    )


def count(name: str, unit: str, value: float) -> Value:
    return Value(name=name, kind="count", direction="lower", unit=unit, value=value)


def absent(name: str, kind: str, unit: str, state: str, reason: str, *, direction: str = "lower") -> Value:
    return Value.model_validate({"name": name, "kind": kind, "direction": direction, "unit": unit, "state": state, "reason": reason})


def speeds(seconds: float) -> tuple[Value, ...]:
    return (
        probe("latency.pipeline.p50", "s", seconds, seconds * 0.99, seconds * 1.01),
        probe("latency.pipeline.p90", "s", seconds * 1.1, seconds * 1.05, seconds * 1.3),
        probe("latency.pipeline.p99", "s", seconds * 1.2),
        probe("latency.unet_step.p50", "s", seconds / 25, seconds / 25.5, seconds / 24.5),
        probe("latency.unet_step.p90", "s", seconds / 24),
        Value(
            name="images_per_second",
            kind="probe",
            direction="higher",
            unit="1/s",
            value=4 / seconds,
            low=3.9 / seconds,
            high=4.1 / seconds,
            n=40,
        ),
        probe("memory.peak_rss", "MiB", 912.4, n=1),
    )
