"""Suite files: what is measured, on which prompts, and how the images are made. They are checked before anything is loaded.

A suite is a TOML file in `suites/`. `include` takes over the metrics (of the suite's own family) and the probes of other suites,
so that `quality` and `standard` state only what is specific to them. The digest of a suite covers its resolved content, with includes,
prompts and the file of the latent. Settings introduced later are not in it unless the suite uses them.
"""

from sdbench.suites.folders import POLICY, SHIPPED, base_name, find, names
from sdbench.suites.inputs import Noise, Prompts, look_order
from sdbench.suites.suite import Accept, Part, Suite, Teacher, check_half, load, load_default, load_part

__all__ = [
    "POLICY",
    "SHIPPED",
    "Accept",
    "Noise",
    "Part",
    "Prompts",
    "Suite",
    "Teacher",
    "base_name",
    "check_half",
    "find",
    "load",
    "load_default",
    "load_part",
    "look_order",
    "names",
]
