"""The OpenAPI description, held to what the server does by requests made from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi import checks as openapi_checks
from served import Client, served

TOKEN = "right"
CHECKS = [
    schemathesis.checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.unsupported_method,
]


@pytest.fixture(scope="module")
def locked(toy: Path) -> Iterator[Client]:
    with served([toy, "drum-hits"], token=TOKEN, upload_bytes=100_000, duration=1.0) as client:
        yield client


@pytest.fixture(scope="module")
def document(locked: Client) -> Any:
    return locked.get("/openapi.json", authorization=f"Bearer {TOKEN}").json


def test_what_is_described(document: Any) -> None:
    assert set(document["paths"]) == {
        "/classify", "/classify/batch", "/models", "/health", "/metrics", "/listen",
    }  # fmt: skip
    classify = document["paths"]["/classify"]["post"]
    assert {parameter["name"] for parameter in classify["parameters"]} == {
        "model", "top", "timeline", "hop", "threshold", "release", "smoothing",
    }  # fmt: skip
    assert classify["parameters"][0]["schema"]["enum"] == ["signs", "drum-hits"]
    assert set(classify["responses"]) >= {"200", "401", "408", "413", "415", "422", "429"}
    for status, response in classify["responses"].items():
        media = "application/json" if status == "200" else "application/problem+json"
        assert list(response["content"]) == [media]


def test_requests_made_from_it(document: Any, locked: Client) -> None:
    """Valid and invalid ones of every route; see benchmarks/server.py for many more."""
    schema = schemathesis.openapi.from_dict(document)
    seen = set()
    for result in schema.get_all_operations():
        operation = result.ok()

        @given(case=st.one_of(operation.as_strategy(generation_mode=mode) for mode in
                              schemathesis.GenerationMode))  # fmt: skip
        @settings(
            max_examples=12, deadline=None, database=None, derandomize=True,
            suppress_health_check=list(HealthCheck), phases=[Phase.generate],
        )  # fmt: skip
        def ask(case: Any) -> None:
            headers = {"Authorization": f"Bearer {TOKEN}"}
            response = case.call(base_url=locked.server.url, headers=headers)
            case.validate_response(response, checks=CHECKS, headers=headers)
            seen.add(response.status_code)

        ask()
    assert seen >= {200, 422, 426}
