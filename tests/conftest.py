"""How properties are tried (a slow machine is no fault of theirs), and in which order tests are run."""

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("ours", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ours")

# Files with tests of twenty seconds and more: begun last, one of them is what all processes wait for at the end.
LONGEST = frozenset({
    "test_callbacks_killed.py",
    "test_shared_caps_kill.py",
    "test_deploys.py",
    "test_tasks_instances.py",
    "test_tasks_operators.py",
    "test_tasks_faults.py",
    "test_money_fuzz.py",
    "test_egress_callers.py",
})  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)
