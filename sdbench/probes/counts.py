"""What is counted of a model, not measured: from the configurations of its networks, whatever its weights."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from sdbench.generate import is_guided
from sdbench.probes import work
from sdbench.probes.request import Request
from sdbench.probes.rounds import Round, count, failed, picked, reason
from sdbench.probes.work import Load, Work
from sdbench.records import Value
from sdbench.settings import Sampling


def counts(request: Request, rounds: Sequence[Round]) -> list[Value]:
    """Multiply-accumulates of a UNet's forward; those of each stage for one picture, and the bytes that it moves."""
    works, why = _works(request, rounds)
    if not works:
        return [failed("flops.unet", "count", "MACs", why)]
    forwards = 2 if is_guided(request.sampling, _known(request, rounds)["configs"]["unet"]) else 1
    return [
        count("flops.unet", "MACs", works["unet_step"].macs // forwards),
        *(count(f"flops.{stage}", "MACs", found.macs) for stage, found in works.items()),
        *(count(f"bytes.{stage}", "B", found.numbers * work.ITEM_BYTES[request.dtype]) for stage, found in works.items()),
    ]


def loads(request: Request, rounds: Sequence[Round]) -> dict[str, Load]:
    """What a call of each stage asks of the machine in this setting; empty where it is not known."""
    works, _ = _works(request, rounds)
    if not works:
        return {}
    upcast = request.dtype == "float16" and bool(_known(request, rounds)["configs"]["vae"].get("force_upcast"))
    dtypes = {stage: "float32" if upcast and stage == "vae_decode" else request.dtype for stage in works}
    return work.loads(works, steps=request.sampling.steps, batch=request.setting.batch, dtypes=dtypes)


def _works(request: Request, rounds: Sequence[Round]) -> tuple[dict[str, Work], str]:
    """By stage, of one picture; or empty, and why."""
    known = _known(request, rounds)
    if not known:
        return {}, reason(rounds, "pipeline")
    try:
        return _counted(json.dumps(known, sort_keys=True), request.sampling), ""
    except Exception as error:  # noqa: BLE001  # a probe that fails loses only itself
        return {}, f"{type(error).__name__}: {error}"


@cache  # settings differ in batch and dtype, on which the work of one picture does not depend
def _counted(known: str, sampling: Sampling) -> dict[str, Work]:
    content = json.loads(known)
    return work.of(content["configs"], sampling, zero_negative=content["zero_negative"])


def _known(request: Request, rounds: Sequence[Round]) -> dict[str, Any]:
    """Configurations as a round saw them; a random model's are known without. Empty where neither is."""
    if seen := picked(rounds, "configs"):
        return {"configs": seen[0], "zero_negative": picked(rounds, "zero_negative")[0]}
    if request.spec.source == "random" and request.spec.family != "custom" and request.setting.vae == "full":
        return {"configs": work.of_random(request.spec), "zero_negative": True}
    return {}
