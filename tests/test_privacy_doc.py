"""docs/privacy.md names the test that proves each claim: it must be there."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
TEXT = (TESTS.parent / "docs" / "privacy.md").read_text()


def test_every_test_that_the_privacy_page_names_exists():
    module, found = "", 0
    for named, name in re.findall(r"`(test_\w+)?::(test_\w+)`", TEXT):
        module = named or module
        source = (TESTS / f"{module}.py").read_text()
        assert re.search(rf"^def {name}\(", source, re.MULTILINE), f"{module}::{name}"
        found += 1
    assert found > 25


def test_every_pitfall_names_a_test():
    rows = [
        line for line in TEXT.splitlines() if re.match(r"\| [A-Z].*\((critical|high)\) \|", line)
    ]
    assert len(rows) == 12
    assert all("::test_" in row for row in rows)
