from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sdbench.models.architectures import PARTS
from sdbench.models.text_encoders import letter_tokenizer, save_text_encoder

LAYER = [
    *(f"layer_norm{number}.{kind}" for number in (1, 2) for kind in ("bias", "weight")),
    *(f"mlp.fc{number}.{kind}" for number in (1, 2) for kind in ("bias", "weight")),
    *(f"self_attn.{name}_proj.{kind}" for name in ("k", "out", "q", "v") for kind in ("bias", "weight")),
]
HUB_KEYS = {  # of stabilityai/stable-diffusion-xl-base-1.0, for one layer
    "text_model.embeddings.position_embedding.weight",
    "text_model.embeddings.token_embedding.weight",
    "text_model.final_layer_norm.bias",
    "text_model.final_layer_norm.weight",
    *(f"text_model.encoder.layers.0.{key}" for key in LAYER),
}


@pytest.mark.parametrize(("kind", "extra_keys"), [(CLIPTextModel, set()), (CLIPTextModelWithProjection, {"text_projection.weight"})])
def test_encoder_is_saved_with_the_hubs_names_and_reads_back_unchanged(
    tmp_path: Path, kind: type[CLIPTextModel], extra_keys: set[str]
) -> None:
    torch.manual_seed(0)
    encoder = kind(CLIPTextConfig(**{**PARTS["scenes"]["text_encoder_2"], "num_hidden_layers": 1})).eval()
    save_text_encoder(encoder, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == HUB_KEYS | extra_keys
    again, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_close(again.state_dict(), encoder.state_dict(), rtol=0, atol=0)
    ids = torch.tensor([[512, 5, 300, 513]])
    assert_close(again(ids)[0], encoder(ids)[0], rtol=0, atol=1e-6)
    save_text_encoder(again, tmp_path / "twice")
    assert (tmp_path / "twice" / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_letters_have_clips_own_ids() -> None:
    # "a</w>", "b" and "!" are 320, 65 and 0 in openai/clip-vit-large-patch14, start and end of text 49406 and 49407.
    tokenizer = letter_tokenizer(vocabulary=49408, tokens=6)
    assert tokenizer("ba", padding="max_length").input_ids == [49406, 65, 320, 49407, 49407, 49407]
    assert tokenizer("!!", padding="max_length").input_ids == [49406, 0, 256, 49407, 49407, 49407]
    # "í" is the bytes C3 and AD, printable as "Ã", the 128th letter, and hidden, the last one.
    assert tokenizer("í").input_ids == [49406, 127, 511, 49407]
    assert len(tokenizer("a long prompt", padding="max_length", truncation=True).input_ids) == 6
