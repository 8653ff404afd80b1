"""The assets that metrics need, by name: evaluators' weights, prompt lists, a latent; with their sources and digests.

A digest is given only if a source states it. A file without one is pinned when it is first used, and values made with it are
marked "unverified". Where the digests come from: Inception and AlexNet: the prefix that `torch.hub` puts into the file's name,
and the full digest in several projects that check it; PickScore and HPS v2.1: the Hub's LFS pages at dc2ed37 and 697403c; ImageReward:
its LFS page, and a project that records it;
DINOv2 at 47b73eef, CLIP ViT-B/32 at a6f597a3, ViT-B/16 at 977e3dd0, ViT-L/14 at 18d05354, ViT-L/14 336 at ce19dc91 and
ViT-H/14: LFS oids that several projects pin; BERT's vocabulary and LAION's aesthetic predictor: several projects that check them;
MLPerf: the files of mlcommons/inference at the commit in their address; HPDv2: a project that pins the benchmark lists at b9517430.
The sizes of PickScore and ImageReward are those of their tensors.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from sdbench.errors import unknown_name
from sdbench.records.names import begins_with, judge_of


@dataclass(frozen=True)
class File:
    """A file of an asset: its path in the source, its size, and its SHA-256 if a source states it."""

    name: str
    size_bytes: int
    sha256: str | None = None


@dataclass(frozen=True)
class Asset:
    """Files that are fetched together by name.

    Attributes:
        source: `model:<repository>` or `dataset:<repository>` on the Hub, or the URL of the folder that holds the files.
        serves: names of the protocols that need it, or their first parts.
    """

    name: str
    source: str
    files: tuple[File, ...]
    serves: tuple[str, ...] = ()

    @property
    def hub(self) -> tuple[str, str] | None:
        """The kind and the name of the repository on the Hub; None if the asset comes from elsewhere."""
        kind, _, repository = self.source.partition(":")
        return (kind, repository) if kind in ("model", "dataset") else None


_AESTHETIC = "https://raw.githubusercontent.com/christophschuhmann/improved-aesthetic-predictor/6934dd81792f086e613a121dbce43082cb8be85e"
_CLIP = "open_clip_model.safetensors"
_FID = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights"
_MLPERF = "https://raw.githubusercontent.com/mlcommons/inference/b66003e10e2db4b8c36a448b0545ec90fcc6e9e9/text_to_image"

_TABLE = (
    Asset("inception-2015", _FID, (
        File("pt_inception-2015-12-05-6726825d.pth", 95_628_359, "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"),
    ), ("fid", "fid_infinity", "kid", "prdc", "fd_to_teacher.clean")),
    Asset("dinov2-vit-l-14", "model:facebook/dinov2-large", (
        File("config.json", 549, "12df51c069a2dc1305e34ba71ef58bc2407ea553b75f4722a1715c1bce3bbed0"),
        File("model.safetensors", 1_217_522_888, "399fba97a95f22c36834418bc69373364a99af3a1153da1c0fb31db567c92e23"),
    ), ("fd.dinov2", "agreement.dinov2", "diversity.dinov2")),
    Asset("clip-vit-l-14-336", "model:openai/clip-vit-large-patch14-336", (
        File("config.json", 4_757, "51b1c14aabcdf639c4a0370eeda1010b773bbe1df78319c7d0f5882c22ac0ac0"),
        File("pytorch_model.bin", 1_711_974_081, "c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801"),
    ), ("cmmd",)),
    Asset("clip-vit-l-14", "model:timm/vit_large_patch14_clip_224.openai", (
        File(_CLIP, 1_710_517_724, "9ce2e8a8ebfff3793d7d375ad6d3c35cb9aebf3de7ace0fc7308accab7cd207e"),
    ), ("clip_score.vit-l-14", "agreement.clip.vit-l-14", "aesthetic.laion-v2", "diversity.clip.vit-l-14")),
    Asset("clip-vit-b-32", "model:timm/vit_base_patch32_clip_224.openai", (
        File(_CLIP, 605_143_284, "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31"),
    ), ("clip_score.vit-b-32", "clip_score.mlperf")),
    Asset("clip-vit-b-16", "model:timm/vit_base_patch16_clip_224.openai", (
        File(_CLIP, 598_516_980, "4b8699299b1e8997753c64b052ba32031449d5d853f55a039148560ee02b820f"),
    ), ("clip_score.vit-b-16",)),
    Asset("clip-vit-h-14", "model:laion/CLIP-ViT-H-14-laion2B-s32B-b79K", (
        File("open_clip_pytorch_model.bin", 3_944_692_325, "9a78ef8e8c73fd0df621682e7a8e8eb36c6916cb3c16b291a082ecd52ab79cc4"),
    ), ("clip_score.vit-h-14",)),
    Asset("pickscore-v1", "model:yuvalkirstain/PickScore_v1", (
        File("config.json", 1_000),
        File("model.safetensors", 3_944_437_764, "ef31ef6fc5ff4d9bb90dd232df4e145887ba62c5a03aa2841415f8c25f18d52e"),
    ), ("pickscore.v1",)),
    Asset("hps-v2.1", "model:xswu/HPSv2", (
        File("HPS_v2.1_compressed.pt", 1_972_490_005, "c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837"),
    ), ("hpsv2.1",)),
    Asset("imagereward-v1", "model:zai-org/ImageReward", (
        File("ImageReward.pt", 1_786_667_908, "d71dc8d4912bc633c06ab8ef1ef6a81e8199d4369f14b47b29baf1d19de561f6"),
    ), ("imagereward.v1",)),
    Asset("bert-base-uncased", "model:google-bert/bert-base-uncased", (
        File("vocab.txt", 231_508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
    ), ("imagereward.v1",)),
    Asset("aesthetic-laion-v2", _AESTHETIC, (
        File("sac+logos+ava1-l14-linearMSE.pth", 3_714_759, "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"),
    ), ("aesthetic.laion-v2",)),
    Asset("lpips-alex", "https://download.pytorch.org/models", (
        File("alexnet-owt-7be5be79.pth", 244_408_911, "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02"),
    ), ("agreement.lpips",)),
    Asset("mlperf-captions", f"{_MLPERF}/coco2014/captions", (
        File("captions_source.tsv", 862_324, "2eeb95637b30fe5af26dd644bafa7affe4e5472ad0bda32d0feb1bd261280d5e"),
    )),
    Asset("mlperf-latents", f"{_MLPERF}/tools", (
        File("latents.pt", 263_324, "de038bcfd04ca1d4f59041000b509013a9617d79c772d58f338c56cbf083c76f"),
    )),
    Asset("hpdv2-prompts", "dataset:zhwang/HPDv2", (
        File("benchmark/anime.json",       62_816, "6b38a479cc6f899866e9b7a8bf91f096b4afc6883b95275a61891327182b14ae"),
        File("benchmark/concept-art.json", 85_787, "530d057deafcb82c581e9d1be2ffcb98828fe99f0b54257414d2ab8a5cf2b83e"),
        File("benchmark/paintings.json",   81_338, "6570d39467e08b24b64e5b8a4177b0f61c525631121dc5a91fe2ab956eab4d5f"),
        File("benchmark/photo.json",       44_606, "92a3c9a0f743f66eb87bd112cdda830d6bdb4c073c86021d53b74001fcb18052"),
    )),
)  # fmt: skip  # a table
ASSETS = {asset.name: asset for asset in _TABLE}


def get_asset(name: str) -> Asset:
    """Look up an asset by name.

    Raises:
        UserError: there is none of this name.
    """
    if name not in ASSETS:
        raise unknown_name("asset", name, ASSETS)
    return ASSETS[name]


def evaluators_for(metrics: Iterable[str]) -> list[Asset]:
    """The evaluators that these protocols need, without those of the embedded family, which come with the package."""
    names = [judge_of(name) or name for name in metrics if not name.endswith(".scenes")]
    return [asset for asset in ASSETS.values() if any(begins_with(name, start) for name in names for start in asset.serves)]
