from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.fresh import number_of
from sentence_transformers import CrossEncoder

from xopt.runtime import open_scorer
from xopt.runtime.bench.reference import ReferenceScorer
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.errors import BadInput, NotFinite
from xopt.runtime.folder import ModelFolder, Plan
from xopt.runtime.machine import cores, has_module, machine_name
from xopt.runtime.scoring.backends.onnx import OnnxBackend
from xopt.runtime.scoring.backends.packed import Packed
from xopt.runtime.scoring.scorer import checked

EXACT = ["onnx-fp32", "torch-fp32"]
INDEPENDENT = [*EXACT, "onnx-int8"]  # variants whose scores depend on the pair alone
DEMO_ROUNDING = 1e-4  # moves the FP32 logits of the demo model by less


def reference(
    folder: ModelFolder, pairs: list[tuple[str, str]], variant: str = "torch-fp32"
) -> np.ndarray:
    return ReferenceScorer(folder, folder.variant(variant), threads=2).score(pairs)


@pytest.mark.parametrize("variant", EXACT)
def test_exact_variants_give_the_reference_scores(
    demo: ModelFolder, docs: Candidates, variant: str
) -> None:
    pairs = docs.pairs[::3]
    scores = open_scorer(demo.path, variant).score(pairs)
    assert scores.dtype == np.float32
    assert scores.shape == (len(pairs),)
    assert np.abs(scores - reference(demo, pairs)).max() < DEMO_ROUNDING


@pytest.mark.parametrize("variant", INDEPENDENT)
@pytest.mark.parametrize("plan", [Plan(1, 1, 64), Plan(2, 1, 512), Plan(3, 1, 100_000)])
def test_scores_do_not_depend_on_plan_order_or_company(
    demo: ModelFolder, docs: Candidates, variant: str, plan: Plan
) -> None:
    scorer = open_scorer(demo.path, variant, plan=plan)
    pairs = docs.pairs[:48:6]
    expected = np.concatenate([scorer.score([pair]) for pair in pairs])
    assert np.abs(scorer.score(pairs) - expected).max() < DEMO_ROUNDING
    assert np.abs(scorer.score(pairs[::-1])[::-1] - expected).max() < DEMO_ROUNDING


def test_sentence_transformers_loads_the_folder_and_gives_our_scores(
    demo: ModelFolder, docs: Candidates
) -> None:
    pairs = docs.pairs[:48:6]
    # It pads, and sums attention in another order; INT8 rounds the float noise of that to other
    # steps.
    through_optimum = (
        (("onnx-fp32", DEMO_ROUNDING), ("onnx-int8", 0.3))
        if has_module("optimum.onnxruntime")
        else ()
    )
    for variant, most in through_optimum:
        arguments = {"file_name": demo.variant(variant).file, "provider": "CPUExecutionProvider"}
        theirs = CrossEncoder(str(demo.path), backend="onnx", model_kwargs=arguments)
        assert (
            np.abs(theirs.predict(pairs) - open_scorer(demo.path, variant).score(pairs)).max()
            < most
        )
        alone = theirs.predict(pairs, batch_size=1)  # nothing is padded
        assert np.abs(alone - open_scorer(demo.path, variant).score(pairs)).max() < DEMO_ROUNDING
    assert (
        np.abs(CrossEncoder(str(demo.path)).predict(pairs) - reference(demo, pairs)).max()
        < DEMO_ROUNDING
    )


@pytest.mark.slow  # on processors without AVX-512
def test_bf16_is_close(demo: ModelFolder, docs: Candidates) -> None:
    pairs = docs.pairs[:32]  # where the processor has no bfloat16 products it is slow
    assert (
        np.abs(open_scorer(demo.path, "torch-bf16").score(pairs) - reference(demo, pairs)).mean()
        < 0.1
    )


def test_the_onnx_scorer_imports_neither_torch_nor_transformers(tiny: ModelFolder) -> None:
    code = (
        "import sys; from xopt.runtime import open_scorer; "
        f"open_scorer({str(tiny.path)!r}, 'onnx-int8').score([('a', 'b')]); "
        "print(sorted({'torch', 'transformers', 'daft', 'scipy', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_empty_texts_score_as_the_reference_does_and_long_ones_are_cut_and_counted(
    demo: ModelFolder,
) -> None:
    pairs = [
        ("", ""),
        ("a query", ""),
        ("", "a text"),
        ("a query", "very long " * 1000),
        ("long " * 600, "long " * 600),
    ]
    scorer = open_scorer(demo.path, "onnx-fp32")
    assert np.abs(scorer.score(pairs) - reference(demo, pairs)).max() < DEMO_ROUNDING
    assert scorer.stages.truncated == 2


def test_identical_pairs_are_scored_once(tiny: ModelFolder) -> None:
    scorer, long = open_scorer(tiny.path), ("a query", "very long " * 1000)
    pairs = [long, ("data", "b"), long, ("data", "a"), ("data", "b")]
    scores = scorer.score(pairs)
    assert scorer.stages.truncated == 1
    assert (scores[0], scores[1]) == (scores[2], scores[4])
    assert np.abs(scores - [scorer.score([pair])[0] for pair in pairs]).max() < DEMO_ROUNDING


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("labels", [1, 3])
def test_a_score_that_is_not_finite_is_named_with_its_pair(bad: float, labels: int) -> None:
    pairs = [("a", "one"), ("b", "two"), ("c", "three")]
    logits = np.zeros((3, labels), np.float32)
    logits = logits[:, 0] if labels == 1 else logits
    assert checked(pairs, logits) is logits
    logits[1] = bad
    with pytest.raises(
        NotFinite, match=r"1 of 3 scores are not finite, first that of pair 1 \('b', 'two'\)"
    ):
        checked(pairs, logits)


def test_no_pairs_give_no_scores(tiny: ModelFolder) -> None:
    assert open_scorer(tiny.path).score([]).shape == (0,)


@pytest.mark.parametrize(
    "bad", [("a", None), (None, "b"), "ab", ("a",), ("a", 1), ["a", "b", "c"], 5]
)
def test_what_is_no_pair_of_texts_is_named(tiny: ModelFolder, bad: object) -> None:
    with pytest.raises(BadInput, match="pair 1: expected a query and a document"):
        open_scorer(tiny.path).score([("a", "b"), bad])


def test_a_tuned_plan_is_used_on_its_machine_and_for_its_threads(tiny_copy: ModelFolder) -> None:
    tuned = Plan(callers=3, threads=2, tokens=777)
    plans = {machine_name(): {"onnx-fp32": tuned}, "another machine": {"onnx-int8": tuned}}
    tiny_copy.write(lambda manifest: replace(manifest, plans=plans))
    assert open_scorer(tiny_copy.path, "onnx-fp32").plan == tuned
    assert open_scorer(tiny_copy.path, "onnx-fp32", threads=1).plan != tuned
    assert open_scorer(tiny_copy.path, "onnx-int8").plan != tuned


def test_what_is_not_there_is_named_with_the_way_out(tiny_copy: ModelFolder) -> None:
    with pytest.raises(BadInput, match="no such folder; make it with `xopt export"):
        open_scorer(tiny_copy.path / "none")
    with pytest.raises(BadInput, match="no variant 'onnx-fp4', only torch-fp32"):
        open_scorer(tiny_copy.path, "onnx-fp4")
    with pytest.raises(BadInput, match="device 'cuda'"):
        open_scorer(tiny_copy.path, device="cuda")
    (tiny_copy.path / "xopt.json").write_text("{}")
    with pytest.raises(BadInput, match="no manifest"):
        open_scorer(tiny_copy.path)
    (tiny_copy.path / "xopt.json").unlink()
    with pytest.raises(BadInput, match=r"no xopt.json in it"):
        open_scorer(tiny_copy.path)


@pytest.mark.parametrize(
    ("variant", "file"), [("onnx-fp32", "onnx/model.onnx"), ("torch-fp32", "model.safetensors")]
)
def test_a_damaged_file_is_refused_by_its_sha256(
    tiny_copy: ModelFolder, variant: str, file: str
) -> None:
    path = tiny_copy.path / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadInput, match=f"{file}: sha256 differs"):
        open_scorer(tiny_copy.path, variant)
    path.unlink()
    with pytest.raises(BadInput, match=f"{file}: missing"):
        open_scorer(tiny_copy.path, variant)


@pytest.mark.slow  # on processors without AVX-512
def test_packed_torch_gives_the_reference_scores(demo: ModelFolder, docs: Candidates) -> None:
    pairs = docs.pairs[:32]
    expected = reference(demo, pairs)
    assert (
        np.abs(open_scorer(demo.path, "torch-varlen-fp32").score(pairs) - expected).max()
        < DEMO_ROUNDING
    )
    half = open_scorer(demo.path, "torch-varlen-fp16").score(pairs)
    assert DEMO_ROUNDING < np.abs(half - expected).max() < 0.05


@pytest.mark.parametrize("ahead", [1, 3])
def test_tokenising_ahead_of_a_device_keeps_every_score_in_its_place(
    tiny: ModelFolder, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    monkeypatch.setattr("xopt.runtime.scoring.encode.FIRST_WINDOW", 2)
    monkeypatch.setattr("xopt.runtime.scoring.encode.LAST_WINDOW", 16)
    pairs = [("data " * (1 + i % 5), "search " * (i % 17)) for i in range(100)]
    expected = open_scorer(tiny.path, "torch-fp32").score(pairs)
    scorer = open_scorer(tiny.path, "torch-varlen-fp32", plan=Plan(1, ahead, 64))
    scorer.backend.streams = True  # as on a GPU
    assert np.abs(scorer.score(pairs) - expected).max() < DEMO_ROUNDING
    assert (
        scorer.stages.text_tokens == scorer.encoder.encode(list(dict.fromkeys(pairs))).lengths.sum()
    )
    assert scorer.stages.forward_s > 0
    assert scorer.stages.copy_s > 0


@pytest.mark.parametrize("variant", ["torch-fp32", "torch-varlen-fp32"])
def test_out_of_memory_halves_the_budget_says_so_and_goes_on(
    tiny: ModelFolder, caplog: pytest.LogCaptureFixture, variant: str
) -> None:
    pairs = [("data", "search " * (i % 40)) for i in range(80)]
    scorer = open_scorer(tiny.path, variant, plan=Plan(1, 1, 512))
    expected, network = scorer.score(pairs), scorer.backend.network

    def of_at_most_100_tokens(packed: Packed) -> torch.Tensor:
        if len(packed.ids) > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return network(packed)

    scorer.backend.network = of_at_most_100_tokens
    assert np.abs(scorer.score(pairs) - expected).max() < DEMO_ROUNDING
    assert scorer.plan.tokens == 64
    assert "out of memory with 512 tokens a forward: going on with 256" in caplog.text
    with pytest.raises(
        BadInput, match="out of memory with a single pair of 64 tokens; use a variant of half"
    ):
        scorer.backend.network = of_none
        scorer.score([("data", "search " * 100)])


def of_none(_: Packed) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_scorer_opens_again_in_another_process(tiny: ModelFolder, docs: Candidates) -> None:
    scorer = open_scorer(tiny.path, "onnx-int8", plan=Plan(2, 1, 256))
    again = pickle.loads(pickle.dumps(scorer))
    assert again.plan == scorer.plan
    assert np.array_equal(again.score(docs.pairs[:8]), scorer.score(docs.pairs[:8]))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("how", ["as it is", "opened again", "unpickled"])
@pytest.mark.parametrize("variant", ["torch-fp32", "openvino-fp32"])
def test_threads_that_a_fork_loses_are_refused_and_not_waited_for(
    tiny: ModelFolder, variant: str, how: str
) -> None:
    plan = Plan(1, 2, 512)
    scorer = open_scorer(tiny.path, variant, plan=plan)
    scorer.score([("data", "search")])
    kept = pickle.dumps(scorer)
    child = os.fork()
    if not child:
        signal.alarm(60)
        try:
            if how != "as it is":
                scorer = (
                    open_scorer(tiny.path, variant, plan=plan)
                    if how == "opened again"
                    else pickle.loads(kept)
                )
            scorer.score([("data", "search")])
        except BadInput as error:
            os._exit(42 if "multiprocessing's 'spawn'" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42


def test_half_a_surrogate_pair_scores_as_a_replacement_character(tiny: ModelFolder) -> None:
    for variant in ("onnx-fp32", "torch-fp32"):
        scorer = open_scorer(tiny.path, variant)
        assert np.array_equal(
            scorer.score([("a\ud83d", "b \ude00")]), scorer.score([("a\ufffd", "b \ufffd")])
        )


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads_are_refused(tiny: ModelFolder, threads: int) -> None:
    with pytest.raises(BadInput, match=f"threads is {threads}; give at least 1"):
        open_scorer(tiny.path, threads=threads)


def test_the_only_forward_of_a_call_has_the_threads_of_all_callers(
    tiny: ModelFolder, docs: Candidates
) -> None:
    scorer = open_scorer(tiny, "onnx-fp32", plan=Plan(callers=2, threads=1, tokens=512))
    together = scorer.score(docs.pairs)
    assert np.abs([scorer.score([pair])[0] for pair in docs.pairs[:4]] - together[:4]).max() < 1e-5
    wide = scorer._wide[2]
    assert isinstance(wide, OnnxBackend)
    assert wide.threads == 2
    with scorer._wide_lock:  # while another call uses it
        assert np.abs(scorer.score(docs.pairs[:1]) - together[:1]).max() < 1e-5
    one_caller = open_scorer(tiny, "onnx-fp32", plan=Plan(callers=1, threads=1, tokens=512))
    one_caller.score(docs.pairs[:1])
    assert not one_caller._wide  # it has all threads already


CPU_TIME_AFTER = """
import sys, time
from xopt.runtime import open_scorer
from xopt.runtime.folder import Plan

scorer = open_scorer(sys.argv[1], "onnx-fp32", plan=Plan(callers=1, threads=2, tokens=4096))
scorer.score([("data", "search index " * 100 + str(i)) for i in range(200)])
used = time.process_time()
time.sleep(0.2)
print(time.process_time() - used)
"""


@pytest.mark.slow
@pytest.mark.alone  # other tests' processes keep to one core each
@pytest.mark.skipif(cores() < 2, reason="there is one core")
def test_threads_sleep_between_forwards(tiny: ModelFolder) -> None:
    assert number_of(CPU_TIME_AFTER, tiny.path) < 0.02
