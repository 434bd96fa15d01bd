"""The embedded server's knowledge of built-in kinds is that of a real server."""

from __future__ import annotations

import kubernetes_types
import pytest
from apiservers import Api

from fencekv_sandbox.apiserver.resources import BUILTIN
from fencekv_sandbox.apiserver.schema import builtin_schema, builtin_types


def test_every_built_in_resource_has_its_types() -> None:
    for resource in BUILTIN:
        assert builtin_schema(resource.group, resource.version, resource.kind), resource
    for name, schema in builtin_types().items():
        for reference in kubernetes_types.REFERENCE.findall(str(schema).replace("'", '"')):
            assert reference in builtin_types(), (name, reference)


@pytest.mark.realapi
@pytest.mark.skipif("not config.getoption('--realapi')", reason="reads a real server's types: --realapi")
async def test_the_types_are_those_of_a_real_server(apiserver: Api) -> None:
    types = await kubernetes_types.read_types(apiserver.session)
    advice = "run: python tests/lib/kubernetes_types.py"
    assert kubernetes_types.text_of(types) == kubernetes_types.TARGET.read_text("utf-8"), advice
