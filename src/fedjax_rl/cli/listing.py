"""`fedjax-rl list`: the names of what there is. Imports no jax."""

from fedjax_rl.config import CONFIGS, trust
from fedjax_rl.config.options import SERVER_NAMES
from fedjax_rl.config.presets import PRESETS
from fedjax_rl.host import output, registry


def show_list(as_json: bool) -> int:
    """Print the names that the command line knows."""
    about = {name: (cls.__doc__ or "").split("\n")[0] for name, cls in CONFIGS.items()}
    about |= {name: entry.value for name, entry in registry.guests("algorithm").items()}
    theirs = [f"{start}NAME" for start in registry.PREFIX["environment"]]
    names = {
        "algorithms": about,
        "environments": [*registry.names("environment"), *theirs, *registry.guests("environment")],
        "policies": [*registry.names("policy"), *registry.guests("policy")],
        "aggregators": [*registry.names("aggregator"), *registry.guests("aggregator")],
        "attacks": [*trust.MESSAGE_ATTACKS, *trust.WORLD_ATTACKS],
        "compressors": [name for name in trust.COMPRESSORS if name != "none"],
        "presets": list(PRESETS),
        "server optimizers": list(SERVER_NAMES),
    }
    if as_json:
        output.result(output.as_json(names))
        return 0
    lines = []
    for title, entries in names.items():
        lines.append(f"{title}:")
        lines += [f"  {name:<24}{entries[name]}" if isinstance(entries, dict) else f"  {name}" for name in entries]
    output.result("\n".join(lines))
    return 0
