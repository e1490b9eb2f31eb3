"""The encoder gives the ids of transformers' own tokenizer, whatever the texts and settings are."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from helpers.fresh import number_of
from helpers.tiny import make_tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from xopt.optimize.model.parity import TEXT
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import Manifest, ModelFolder
from xopt.runtime.machine import cores
from xopt.runtime.scoring import encode
from xopt.runtime.scoring.encode import (
    WINDOW_CHARACTERS,
    Encoder,
    Encoding,
    clean,
    windows,
)

DEMO = Path(__file__).parents[3] / "models" / "demo"
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def byte_level(folder: Path) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet),
    )
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    return saved(made, folder)


def unigram(folder: Path) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator(
        [TEXT] * 20,
        trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>"),
    )
    made.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", "<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return saved(made, folder)


def saved(tokenizer: Tokenizer, folder: Path) -> PreTrainedTokenizerFast:
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="<s>", sep_token="</s>", **names
    )
    made.save_pretrained(folder)
    return made


def word_level(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(make_tiny(folder))


def word_piece(folder: Path) -> PreTrainedTokenizerFast:
    made = AutoTokenizer.from_pretrained(DEMO)
    made.save_pretrained(folder)
    return made


@pytest.fixture(
    scope="module",
    params=[word_level, word_piece, byte_level, unigram],
    ids=lambda make: make.__name__,
)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreTrainedTokenizerFast, ModelFolder]:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = request.param(folder)
    manifest = Manifest(
        source={},
        versions={},
        max_length=32,
        labels=1,
        activation="",
        prompt="",
        pad_id=tokenizer.pad_token_id,
        truncation_side="right",
        inputs=["input_ids", "token_type_ids", "attention_mask"],
        files={
            "tokenizer.json": hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
        },
        variants={},
    )
    return tokenizer, ModelFolder(folder, manifest)


TEXTS = st.one_of(
    st.text(max_size=60),  # lone surrogates, NUL, private use and all
    st.lists(
        st.sampled_from([*TEXT.split(), *SPECIAL, "[SEP]", "[CLS]", "[PAD]", " ", "\n", ""]),
        max_size=60,
    ).map(" ".join),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4),
    max_length=st.integers(12, 48),
    side=st.sampled_from(["left", "right"]),
    truncation=st.sampled_from(["longest_first", "only_second"]),
    split=st.booleans(),
    prompt=st.sampled_from(["", "search data: "]),
    most=st.sampled_from([encode.MOST_CHARACTERS, 20, 100, 150]),
)
def test_the_ids_are_transformers_own(
    made: tuple[PreTrainedTokenizerFast, ModelFolder],
    pairs: list[tuple[str, str]],
    max_length: int,
    side: str,
    truncation: str,
    split: bool,
    prompt: str,
    most: int,
) -> None:
    tokenizer, folder = made
    tokenizer.truncation_side, tokenizer.split_special_tokens = side, split
    manifest = replace(
        folder.manifest,
        max_length=max_length,
        truncation_side=side,
        truncation=truncation,
        split_special_tokens=split,
        prompt=prompt,
    )
    encoder = Encoder(replace(folder, manifest=manifest))
    for query, text in pairs:
        whole = clean(prompt + query), clean(text)
        named = {"truncation": truncation, "max_length": max_length, "return_token_type_ids": True}
        try:
            # as sentence-transformers calls it: an empty text is one
            expected = tokenizer([whole], **named)
        except Exception:  # a query that leaves no room for a document
            with pytest.raises(BadInput, match="the tokenizer cannot encode these texts"):
                encoder.encode([(query, text)])
            continue
        with patch.object(encode, "MOST_CHARACTERS", most):
            tokens = encoder.encode([(query, text)])
        assert tokens.ids[0].tolist() == expected["input_ids"][0]
        assert tokens.type_ids[0].tolist() == expected["token_type_ids"][0]
        longer = len(tokenizer([whole])["input_ids"][0]) > max_length
        assert tokens.truncated == longer


@pytest.mark.parametrize("side", ["left", "right"])
def test_of_a_very_long_text_only_the_side_that_is_kept_is_tokenised(
    made: tuple[PreTrainedTokenizerFast, ModelFolder], side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "MOST_CHARACTERS", 1000)
    encoder = Encoder(
        replace(made[1], manifest=replace(made[1].manifest, max_length=24, truncation_side=side))
    )
    pair = ("data", "search the index " * 1000)
    seen = []
    whole = encoder._tokenized

    def noted(pairs: list[tuple[str, str]]) -> list[Encoding]:
        seen.extend(pairs)
        return whole(pairs)

    monkeypatch.setattr(encoder, "_tokenized", noted)
    assert encoder.encode([pair]).ids[0].tolist() == whole([pair])[0].ids
    assert max(len(text) for _, text in seen) <= 1000


def test_type_ids_that_the_tokenizer_does_not_name_are_zero(
    made: tuple[PreTrainedTokenizerFast, ModelFolder],
) -> None:
    _, folder = made
    manifest = replace(folder.manifest, inputs=["input_ids", "attention_mask"])
    tokens = Encoder(replace(folder, manifest=manifest)).encode([("a query", "a document")])
    assert not tokens.type_ids[0].any()


@given(st.lists(st.integers(0, WINDOW_CHARACTERS * 2), max_size=30), st.integers(0, 5000))
def test_windows_cover_all_pairs_and_hold_little_text(lengths: list[int], short: int) -> None:
    class Long(str):
        __slots__ = ("n",)

        def __new__(cls, n: int) -> Long:
            made = super().__new__(cls, "")
            made.n = n
            return made

        def __len__(self) -> int:
            return self.n

    pairs = [("", Long(n)) for n in lengths] + [("", Long(1))] * short
    found = list(windows(pairs))
    assert [i for window in found for i in range(len(pairs))[window]] == list(range(len(pairs)))
    for window in found:
        *rest, _ = pairs[window]
        assert sum(len(text) for _, text in rest) <= WINDOW_CHARACTERS


def test_many_pairs_are_the_same_as_each_alone(
    made: tuple[PreTrainedTokenizerFast, ModelFolder],
) -> None:
    encoder = Encoder(made[1])
    pairs = [("data", "search " * (i % 50)) for i in range(700)]
    together = encoder.encode(pairs)
    alone = [encoder.encode([pair]) for pair in pairs]
    assert all(
        np.array_equal(ids, one.ids[0]) for ids, one in zip(together.ids, alone, strict=True)
    )
    assert together.truncated == sum(one.truncated for one in alone) > 0
    assert encoder.encode([]).lengths.shape == (0,)


CPU_TIME = """
import sys, time
from xopt.runtime import open_scorer
scorer = open_scorer(sys.argv[1], "onnx-fp32", threads=1)
pairs = [("data", "search index " * 100 + str(i)) for i in range(3000)]
used, start = time.process_time(), time.monotonic()
scorer.encode(pairs)
print((time.process_time() - used) / (time.monotonic() - start))
"""


@pytest.mark.slow
@pytest.mark.alone  # other tests' processes keep to one core each
@pytest.mark.skipif(cores() < 2, reason="there is one core")
def test_a_tokenizer_of_one_thread_uses_one_core(tiny: ModelFolder) -> None:
    assert number_of(CPU_TIME, tiny.path) < 1.3


@pytest.mark.parametrize("threads", [1, 2])
def test_tokens_do_not_depend_on_threads(
    tiny: ModelFolder, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr("xopt.runtime.scoring.encode.cores", lambda: 3)
    pairs = [("data", "search " * (i % 50)) for i in range(300)]
    bound = Encoder(tiny, threads).encode(pairs)
    free = Encoder(tiny).encode(pairs)
    assert [ids.tolist() for ids in bound.ids] == [ids.tolist() for ids in free.ids]
    assert bound.truncated == free.truncated
