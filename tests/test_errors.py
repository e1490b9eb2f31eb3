from __future__ import annotations

import pytest

from xopt.cli.errors import with_option_names
from xopt.cli.main import all_commands


@pytest.mark.parametrize(
    ("command", "message", "shown"),
    [
        ("rerank", "start again with `force=True`", "start again with --force"),
        ("rerank", "give `variant='onnx-int8'`", "give --variant onnx-int8"),
        ("rerank", "name it with `doc_id=`", "name it with --doc-id"),
        ("rerank", "give another `out=`", "give another --out"),
        ("rerank", "name another `inputs=`", "name another INPUT..."),
        ("tune", "only `qrels=` has grades", "only --qrels has grades"),  # another command's
        ("validate", "the gate on ndcg10_drop: no qrels", "--max-ndcg-drop: no qrels"),
        ("validate", "the gate on taste: unknown", "the gate on taste: unknown"),
        ("rerank", "of `nothing=known`", "of `nothing=known`"),
        ("rerank", "run `xopt export DIR` again", "run `xopt export DIR` again"),
    ],
)
def test_arguments_are_named_as_options(command: str, message: str, shown: str) -> None:
    assert with_option_names(message, all_commands(first=command)) == shown
