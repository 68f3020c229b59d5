"""Time budgets and evaluation periods of AlgoPerf's base workloads, for the machines they were measured on.

Sources: `v100x8`, the AlgoPerf benchmark v0.6 (eight V100; its published logs record the same numbers); `a100x4`, the
published logs of the later self-tuning round (four A100 of 40 GB, TF32), which has one more workload.
"""

from collections.abc import Collection

from workloads.spec import Budget

V100X8 = "v100x8"
A100X4 = "a100x4"

BUDGETS: dict[str, dict[str, Budget]] = {
    V100X8: {
        "criteo1tb": Budget(step_hint=10_666, max_allowed_runtime_s=7_703, eval_period_s=120),
        "fastmri": Budget(step_hint=18_094, max_allowed_runtime_s=4_430, eval_period_s=80),
        "imagenet_resnet": Budget(step_hint=195_999, max_allowed_runtime_s=66_159, eval_period_s=510),
        "imagenet_vit": Budget(step_hint=167_999, max_allowed_runtime_s=69_768, eval_period_s=420),
        "librispeech_conformer": Budget(step_hint=76_000, max_allowed_runtime_s=58_015, eval_period_s=1_440),
        "librispeech_deepspeech": Budget(step_hint=38_400, max_allowed_runtime_s=44_405, eval_period_s=1_440),
        "ogbg": Budget(step_hint=52_000, max_allowed_runtime_s=12_011, eval_period_s=240),
        "wmt": Budget(step_hint=120_000, max_allowed_runtime_s=43_336, eval_period_s=840),
    },
    A100X4: {
        "criteo1tb": Budget(step_hint=10_666, max_allowed_runtime_s=8_915, eval_period_s=356),
        "fastmri": Budget(step_hint=18_094, max_allowed_runtime_s=2_745, eval_period_s=110),
        "finewebedu_lm": Budget(step_hint=72_000, max_allowed_runtime_s=31_967, eval_period_s=2_571),
        "imagenet_resnet": Budget(step_hint=195_999, max_allowed_runtime_s=49_918, eval_period_s=1_996),
        "imagenet_vit": Budget(step_hint=167_999, max_allowed_runtime_s=64_292, eval_period_s=2_571),
        "librispeech_conformer": Budget(step_hint=76_000, max_allowed_runtime_s=43_680, eval_period_s=1_747),
        "librispeech_deepspeech": Budget(step_hint=38_400, max_allowed_runtime_s=36_949, eval_period_s=1_447),
        "ogbg": Budget(step_hint=52_000, max_allowed_runtime_s=11_303, eval_period_s=452),
        "wmt": Budget(step_hint=120_000, max_allowed_runtime_s=16_114, eval_period_s=644),
    },
}


def budget(workload_name: str, profile: str) -> Budget | None:
    """The official budget of a base workload, or of a variant named after one; None if it is not known.

    Raises:
        ValueError: there is no such profile.
    """
    if profile not in BUDGETS:
        raise ValueError(f"unknown hardware profile {profile!r}; known: {', '.join(BUDGETS)}")
    is_variant_of = f"{workload_name}_".startswith
    return next((value for name, value in BUDGETS[profile].items() if is_variant_of(f"{name}_")), None)


def base_workloads(profile: str, present: Collection[str]) -> tuple[str, ...]:
    """The base workloads of the AlgoPerf round that the results belong to; their number is the score's denominator.

    Args:
        profile: the hardware profile. `a100x4`, the later round's, replaces it if a workload of that round alone is
            present.
        present: the results' workloads.
    """
    own, later = BUDGETS[profile], BUDGETS[A100X4]
    return tuple(later if any(name in later and name not in own for name in present) else own)
