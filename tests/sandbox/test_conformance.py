"""One list of behaviours, asked of the embedded API server, and with `--realapi` of a real one."""

from __future__ import annotations

import pytest
from apiservers import Api
from conformance import Behaviour, load

BEHAVIOURS = load()


def test_the_list_is_long_enough_to_mean_something() -> None:
    assert len(BEHAVIOURS) >= 60


@pytest.mark.parametrize("one", [one for one in BEHAVIOURS if not one.difference], ids=lambda one: one.name)
async def test_behaviour(one: Behaviour, apiserver: Api) -> None:
    await one.check(apiserver, await apiserver.namespace())


@pytest.mark.parametrize("one", [one for one in BEHAVIOURS if one.difference], ids=lambda one: one.name)
async def test_known_difference(one: Behaviour, apiserver: Api) -> None:
    namespace = await apiserver.namespace()
    if apiserver.real:
        await one.check(apiserver, namespace)
        return
    with pytest.raises(AssertionError):
        await one.check(apiserver, namespace)
