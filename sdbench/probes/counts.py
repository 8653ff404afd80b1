"""Values that are counted, not measured: parameters, and work by the configurations of a model's networks, whatever its weights."""

from collections.abc import Sequence
from typing import Any

from sdbench.generate import is_guided
from sdbench.probes import work
from sdbench.probes.request import Request
from sdbench.probes.rounds import Round, collect_info, exact_value, failed_value, failure_reason
from sdbench.probes.work import Load, Work
from sdbench.records import Value


def values(request: Request, rounds: Sequence[Round]) -> list[Value]:
    """Parameters; multiply-accumulates of one forward of the UNet, and those of each stage for one image, with the bytes that it moves."""
    parameters = [_parameters(name, rounds) for name in ("unet", "pipeline")]
    works, reason = _work_by_stage(request, rounds)
    if not works:
        return [*parameters, failed_value("flops.unet", "count", "MACs", reason)]
    dtypes = _dtypes(request, rounds)
    forwards = 2 if is_guided(request.sampling, _find_configs(request, rounds)["configs"]["unet"]) else 1
    return [
        *parameters,
        exact_value("flops.unet", "MACs", works["unet_step"].macs // forwards),
        *(exact_value(f"flops.{stage}", "MACs", of_stage.macs) for stage, of_stage in works.items()),
        *(exact_value(f"bytes.{stage}", "B", of_stage.numbers * work.ITEM_BYTES[dtypes[stage]]) for stage, of_stage in works.items()),
    ]


def _parameters(name: str, rounds: Sequence[Round]) -> Value:
    numbers, value_name = collect_info(rounds, "parameters", name), f"parameters.{name}"
    return (
        exact_value(value_name, "parameters", numbers[0])
        if numbers
        else failed_value(value_name, "count", "parameters", failure_reason(rounds, "pipeline"))
    )


def loads(request: Request, rounds: Sequence[Round]) -> dict[str, Load]:
    """FLOPs and bytes of a call of each stage in this setting; empty where they are not known."""
    works, _ = _work_by_stage(request, rounds)
    if not works:
        return {}
    return work.loads(works, steps=request.sampling.steps, batch=request.setting.batch, dtypes=_dtypes(request, rounds))


def _dtypes(request: Request, rounds: Sequence[Round]) -> dict[str, str]:
    """The dtype that each stage with work runs in: the pipeline decodes in float32 where a VAE would overflow in float16."""
    upcast = request.dtype == "float16" and _find_configs(request, rounds)["configs"]["vae"].get("force_upcast")
    return {"text_encoders": request.dtype, "unet_step": request.dtype, "vae_decode": "float32" if upcast else request.dtype}


def _work_by_stage(request: Request, rounds: Sequence[Round]) -> tuple[dict[str, Work], str]:
    """The work of each stage for one image; or nothing, and the reason."""
    configs = _find_configs(request, rounds)
    if not configs:
        return {}, failure_reason(rounds, "pipeline")
    try:
        return work.by_stage(configs["configs"], request.sampling, zero_negative=configs["zero_negative"]), ""
    except Exception as error:  # noqa: BLE001  # a probe that fails loses only itself
        return {}, f"{type(error).__name__}: {error}"


def _find_configs(request: Request, rounds: Sequence[Round]) -> dict[str, Any]:
    """The networks' configurations, as a round found them, else those of a model with random weights; empty where neither is there."""
    if seen := collect_info(rounds, "configs"):
        return {"configs": seen[0], "zero_negative": collect_info(rounds, "zero_negative")[0]}
    if request.spec.source == "random" and request.setting.vae == "full":
        return {"configs": work.random_configs(request.spec), "zero_negative": True}
    return {}
