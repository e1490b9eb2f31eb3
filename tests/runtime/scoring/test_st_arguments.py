"""Arguments and attributes of sentence-transformers' CrossEncoder, and what they do here."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch

from xopt.optimize.model.parity import parity_pairs
from xopt.runtime import CrossEncoder
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.scoring import st_arguments

PAIRS = parity_pairs(60)


# What Haystack's ranker gives, and all that sentence-transformers has had.
NOTHING_ASKED: dict[str, Any] = {
    "modules": None,
    "prompts": None,
    "default_prompt_name": None,
    "cache_folder": "/nowhere",
    "cache_dir": None,
    "revision": None,
    "local_files_only": True,
    "token": "secret",
    "model_kwargs": {"torch_dtype": "auto", "attn_implementation": None},
    "automodel_args": {},
    "processor_kwargs": {},
    "tokenizer_kwargs": None,
    "tokenizer_args": None,
    "config_kwargs": None,
    "config_args": {"num_labels": None},
    "model_card_data": None,
    "backend": "torch",
    "num_labels": None,
    "classifier_dropout": 0.1,
    "keep_in_fp32_modules": None,
    "default_activation_function": None,
    "trust_remote_code": False,
}


def test_every_argument_of_sentence_transformers_is_known(tiny: ModelFolder) -> None:
    ours = inspect.signature(CrossEncoder.__init__).parameters
    theirs = inspect.signature(sentence_transformers.CrossEncoder.__init__).parameters
    assert set(theirs) <= {*NOTHING_ASKED, *ours}
    model = CrossEncoder(model_name=tiny.path, **NOTHING_ASKED)
    assert np.array_equal(model.predict(PAIRS), CrossEncoder(tiny.path).predict(PAIRS))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_labels": 2}, "num_labels=2: .* has 1; export the model with a head"),
        ({"config_kwargs": {"num_labels": 2}}, "num_labels=2: .* has 1; export the model with"),
        ({"variant": 3}, "num_labels=3: .* has 1; export the model with a head"),
        ({"backend": "onnx"}, "backend='onnx': a model folder has its backends: choose a variant"),
        ({"model_kwargs": {"torch_dtype": torch.float16}}, "torch_dtype=torch.float16: a model"),
        ({"automodel_args": {"dtype": "bfloat16"}}, "dtype='bfloat16': .* its dtype: choose a var"),
        ({"model_kwargs": {"device_map": "auto"}}, "device_map='auto': .* as its variant says"),
        ({"tokenizer_args": {"padding_side": "left"}}, "processor_kwargs={'padding_side': 'left'}"),
        ({"config_args": {"hidden_size": 1}}, "config_kwargs={'hidden_size': 1}: a model folder"),
        ({"revision": "v2"}, "revision='v2': a model folder is one revision"),
        ({"prompts": {"a": "b "}, "default_prompt_name": "a"}, "prompts={'a': 'b '}: give `prompt"),
        ({"modules": [torch.nn.Identity()]}, "a model folder has its modules: export the model"),
        ({"keep_in_fp32_modules": ["classifier"]}, "a model folder has its dtype"),
    ],
)
def test_what_a_model_folder_cannot_be_asked_for_is_said(
    tiny: ModelFolder, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        CrossEncoder(tiny.path, **given)


def test_older_names_and_places_of_arguments_are_taken(tiny: ModelFolder) -> None:
    logits = CrossEncoder(tiny.path, activation_fn=torch.nn.Identity(), max_length=12)
    expected = logits.predict(PAIRS)
    older: list[CrossEncoder] = [
        CrossEncoder(tiny.path, 1, 12, torch.nn.Identity(), "cpu"),
        CrossEncoder(
            model_name=tiny.path,
            default_activation_function=torch.nn.Identity(),
            tokenizer_args={"model_max_length": 12},
            config_args={"num_labels": 1},
        ),
        CrossEncoder(tiny.path, "onnx-fp32", 12, activation_fn=torch.nn.Identity(), backend="onnx"),
    ]
    for model in older:
        assert (model.num_labels, model.max_length, model.variant) == (1, 12, "onnx-fp32")
        assert np.array_equal(model.predict(PAIRS), expected)
    with pytest.raises(TypeError, match="unexpected keyword argument 'activation_func'"):
        CrossEncoder(tiny.path, activation_func=torch.nn.Identity())
    with pytest.raises(TypeError, match="needs a model folder"):
        CrossEncoder()


def test_what_is_set_later_does_what_the_argument_does(
    tiny: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = [("data " * 30, "search engine " * 30)]
    monkeypatch.chdir(tiny.path.parent)
    model = CrossEncoder(tiny.path.name)
    whole = model.predict(long)
    monkeypatch.chdir("/")
    short = CrossEncoder(tiny.path, max_length=12).predict(long)
    model.max_length = 12
    assert np.array_equal(model.predict(long), short)
    assert model.max_seq_length == pickle.loads(pickle.dumps(model)).max_length == 12
    with pytest.raises(BadInput, match="leaves no room for 3 special tokens"):
        model.max_seq_length = 3
    assert np.array_equal(model.predict(long), short)
    model.max_seq_length = tiny.manifest.max_length
    assert np.array_equal(model.predict(long), whole)
    model.activation_fn = torch.nn.Identity()
    logits = model.predict(PAIRS)
    assert np.array_equal(logits, model.predict(PAIRS, activation_fn=torch.nn.Identity()))
    with pytest.deprecated_call(match="use `activation_fn`"):
        model.default_activation_function = torch.nn.Tanh()
    assert model.predict(PAIRS) == pytest.approx(np.tanh(logits), abs=1e-6)
    model.activation_fn = None
    assert np.array_equal(model.predict(PAIRS), CrossEncoder(tiny.path).predict(PAIRS))


def test_what_clients_call_on_a_module_is_the_model_itself_or_says_why_not(
    tiny: ModelFolder,
) -> None:
    model = CrossEncoder(tiny.path)
    assert model.eval() is model.to("cpu") is model.to(torch.device("cpu", 0)) is model
    with pytest.raises(BadInput, match="device 'cuda': it runs on cpu; open the model folder with"):
        model.to("cuda")
    assert model.predict(PAIRS[0], device="cpu:0") == model.predict(PAIRS[0])
    for name in st_arguments.ABSENT:
        assert not hasattr(model, name)
    with pytest.raises(AttributeError, match="no attribute 'half': a model folder has its dtype"):
        model.half()  # type: ignore[attr-defined] # it is not there
    with pytest.raises(AttributeError, match=r"no attribute 'nothing'$"):
        model.nothing  # type: ignore[attr-defined] # noqa: B018 # the access is the test
