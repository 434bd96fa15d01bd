"""Options of the test run."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--realapi",
        action="store_true",
        help="ask a real kube-apiserver from KUBEBUILDER_ASSETS instead of the embedded one",
    )
