"""The tokenizer of the scenes' text encoders."""

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from sdbench.scenes.grammar import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, parse, scene_at
from sdbench.scenes.training.text import MAX_TOKENS, tokenize_captions, train_tokenizer

WORDS = ("a", "on", "background", *SHAPES, *COLOURS, *BACKGROUNDS, *SIZES, *(word for relation in RELATIONS for word in relation.split()))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_every_word_is_one_token_of_its_own(tokenizer: CLIPTokenizer) -> None:
    ids = {word: tokenizer(word, add_special_tokens=False).input_ids for word in WORDS}
    assert {word: len(found) for word, found in ids.items()} == dict.fromkeys(WORDS, 1)
    assert len({found[0] for found in ids.values()}) == len(set(WORDS))


def test_end_of_text_has_the_highest_id(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer.eos_token_id == max(tokenizer.get_vocab().values()) == len(tokenizer) - 1
    assert tokenizer.bos_token_id == len(tokenizer) - 2
    ids = tokenize_captions(tokenizer, [scene_at(index) for index in range(8)])
    assert (ids.argmax(1) == (ids == tokenizer.eos_token_id).int().argmax(1)).all()  # as open_clip finds the end of the text


def test_caption_is_tokenized_between_start_and_end_and_padded_to_full_length(tokenizer: CLIPTokenizer) -> None:
    scene = parse("a large red circle left of a small blue star on a pink background")
    (ids,) = tokenize_captions(tokenizer, [scene]).tolist()
    assert len(ids) == MAX_TOKENS == tokenizer.model_max_length
    n = len(scene.caption.split())
    assert ids[0] == tokenizer.bos_token_id
    assert ids[n + 1 :] == [tokenizer.eos_token_id] * (MAX_TOKENS - n - 1)
    assert tokenizer.decode(ids[1 : n + 1]).strip() == scene.caption


def test_tokenizer_training_is_deterministic(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    again = train_tokenizer(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    captions = [scene_at(index).caption for index in range(20)]
    assert again(captions).input_ids == tokenizer(captions).input_ids
