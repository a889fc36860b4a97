# SPDX-License-Identifier: Apache-2.0
"""A suite's document as JUnit XML: a test case a scenario, its area the class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from junitparser import Error, Failure, JUnitXml, TestCase, TestSuite
from junitparser.junitparser import FinalResult


def write(document: dict[str, Any], file: Path) -> None:
    """Write the results, and the kernel's splats as a case of their own."""
    suite = TestSuite("bpfoom scenarios")
    suite.add_property("kernel", document["kernel"])
    suite.add_property("accelerator", document["accelerator"])
    for result in document["results"]:
        suite.add_testcase(_case(result))
    if document["splats"]:
        case = TestCase("kernel log", "bpfoom")
        case.result = [Failure("\n".join(document["splats"]), "splat")]
        suite.add_testcase(case)
    xml = JUnitXml()
    xml.add_testsuite(suite)
    xml.update_statistics()  # type: ignore[no-untyped-call]
    xml.write(str(file), pretty=True)


def _case(result: dict[str, Any]) -> TestCase:
    area, _, name = result["scenario"].partition("/")
    case = TestCase(name, area, result["seconds"])
    found: list[FinalResult] = []
    missed = [f"{f['key']}: expected {f['expected']}, seen {f['seen']}" for f in result["failures"]]
    if missed:
        # One for all of them: a case fails once.
        failure = Failure("; ".join(missed), "expectation")
        failure.text = "\n".join(missed)
        found.append(failure)
    if result["error"]:
        found.append(Error(result["error"]["message"], result["error"]["error"]))
    case.result = found
    return case
