"""The encoders that references are built with. Imports nothing, because `sdbench --help` lists them."""

ENCODER_OF = {  # set metric -> encoder of the features that it compares with a reference's
    "fd.scenes": "scenes.features",
    "fid.clean": "inception.clean",
    "fid_infinity.clean": "inception.clean",
    "fid.tf1": "inception.tf1",
    "fid.mlperf": "inception.mlperf",
    "fid.torchmetrics": "inception.torchmetrics",
    "fd.dinov2": "dinov2.vit-l-14",
    "kid": "inception.clean",
    "cmmd": "clip.vit-l-14-336",
    "prdc.precision": "inception.clean",
    "prdc.recall": "inception.clean",
    "prdc.density": "inception.clean",
    "prdc.coverage": "inception.clean",
}
