"""Which curvature: FMRL of the first order, and exact through three surrogates.

python -m experiments.curvature --scale laptop [--out DIR] [--envs ENV ...]
"""

from pathlib import Path

from experiments.common import Scale, line, main, study

LINES = {
    "first order": {"order": "first"},
    "exact, ratio": {"order": "second", "surrogate": "ratio"},
    "exact, log": {"order": "second", "surrogate": "log"},
    "exact, dice": {"order": "second", "surrogate": "dice"},
}


def experiment(scale: Scale, out: Path, envs: tuple[str, ...]) -> None:
    """All at the scale's own server rate."""
    study(
        scale, out, envs, lambda env: {label: line(scale, env, label, **v) for label, v in LINES.items()}, "curvature"
    )


if __name__ == "__main__":
    main(__doc__, "curvature", experiment)
