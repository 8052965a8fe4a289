"""Hypothesis's profiles, and what runs only when it is asked for.

By default examples are the same in every run, so that no run fails by chance;
``--hypothesis-profile=explore`` searches among others, and longer.
"""

import gc

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "alike",
    derandomize=True,
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "explore",
    settings.get_profile("alike"),
    derandomize=False,
    max_examples=5000,
    print_blob=True,
)
settings.load_profile("alike")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave `nightly` tests out unless ``-m`` names them, and let those with TensorFlow come last.

    Other tests fork, and limit the memory of the child: neither goes with what TensorFlow holds.
    Of those with TensorFlow the longest come first, so that no process waits for another's last.

    A ``-m`` among pytest's own options would not do: that of a caller, as in ``-m "not slow"``,
    would take its place, and the longest tests would run.
    """
    items.sort(key=_turn)  # keeps the order otherwise
    if "nightly" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("nightly")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _turn(item: pytest.Item) -> int:
    if "parity" not in item.path.parts:
        return 0
    return 1 if item.get_closest_marker("slow") else 2


def pytest_collection_finish() -> None:
    """Let no later collection of garbage walk what lives as long as the process.

    With TensorFlow and ten thousand tests that takes a second, and in a fork copies all of it.
    """
    gc.collect()
    gc.freeze()
