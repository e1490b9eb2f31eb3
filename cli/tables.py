"""Kept for one import until `tests/runtime/bench/test_bench.py` names the new place."""

from xopt.cli.commands.bench import print_explained

__all__ = ["print_explained"]
