"""The models known by name. Licences and download sizes are given only if a source states them."""

from dataclasses import dataclass
from typing import Literal

from sdbench.models.architectures import Family

Source = Literal["hub", "folder", "unet-folder", "file", "embedded", "random", "rendered", "memory"]


@dataclass(frozen=True)
class Entry:
    """A row of the catalogue.

    Attributes:
        location: Hub repository, or folder under `sdbench/scenes/weights/`; "" for images without a model.
        licence: from the model card; "" if it was not found.
        download_gb: size of the 16-bit weights in gigabytes (10^9 bytes), two bytes a parameter; 0 if nothing is fetched.
    """

    name: str
    family: Family
    architecture: str
    source: Source
    location: str
    licence: str
    download_gb: float


# fmt: off
_ROWS = (
    #     name          family  architecture  source location                                    licence                     GB
    Entry("sdxl",       "sdxl", "sdxl",       "hub", "stabilityai/stable-diffusion-xl-base-1.0", "CreativeML Open RAIL++-M", 6.9),
    Entry("ssd-1b",     "sdxl", "ssd-1b",     "hub", "segmind/SSD-1B",                           "Apache-2.0",               4.5),
    Entry("vega",       "sdxl", "vega",       "hub", "segmind/Segmind-Vega",                     "Apache-2.0",               3.3),
    Entry("koala-1b",   "sdxl", "koala-1b",   "hub", "etri-vilab/koala-1b",                      "",                         4.1),
    Entry("koala-700m", "sdxl", "koala-700m", "hub", "etri-vilab/koala-700m",                    "",                         3.4),
    #     name                  family    architecture source      location             licence       GB
    Entry("scenes-rendered",    "scenes", "",          "rendered", "",                  "Apache-2.0", 0.0),
    Entry("scenes-teacher",     "scenes", "sdxl",      "embedded", "pipeline",          "Apache-2.0", 0.0),
    Entry("scenes-ssd-1b",      "scenes", "ssd-1b",    "embedded", "unets/ssd-1b",      "Apache-2.0", 0.0),
    Entry("scenes-vega",        "scenes", "vega",      "embedded", "unets/vega",        "Apache-2.0", 0.0),
    Entry("scenes-vega-pruned", "scenes", "vega",      "embedded", "unets/vega-pruned", "Apache-2.0", 0.0),
)
# fmt: on

CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in _ROWS}
TEACHERS = {"sdxl": "sdxl", "scenes": "scenes-teacher"}  # family -> the entry whose text encoders and VAE the others share
DEFAULT_SUITES = {"scenes": "quality", "sdxl": "standard"}  # the suite that a family is measured under by default
