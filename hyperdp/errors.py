"""Every error a user can meet, built in one place: expected, found, what to do."""

from __future__ import annotations


class HyperdpError(Exception):
    """Base of all errors that are the caller's to mend; `exit_code` is what the CLI returns.

    The text never holds a private value: no record, no un-noised sum, no exact count.
    """

    exit_code = 2

    def __init__(self, *, expected: str, found: str, todo: str) -> None:
        self.expected, self.found, self.todo = expected, found, todo
        super().__init__(f"expected {expected}; found {found}. {todo}")


def printable(text: str) -> str:
    """A text whose control characters are spelt out, so that none of them reaches a terminal.

    Args:
        text: of a file that others have written, say.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class UsageError(HyperdpError):
    """Bad arguments (exit code 2)."""


def settings_error(settings: object, broken: list[str]) -> UsageError:
    """The error of settings that break some rules, with the values that do and no others.

    Args:
        settings: a dataclass.
        broken: the rules, in which its fields are words.
    """
    words = {word for rule in broken for word in rule.split()}
    values = [f"{name} = {value!r}" for name, value in vars(settings).items() if name in words]
    return UsageError(
        expected=", ".join(broken), found=", ".join(values), todo="Mend the settings."
    )


class DataError(HyperdpError):
    """The data cannot be read as asked (exit code 2)."""


class BundleError(HyperdpError):
    """A bundle is unknown, damaged or not the one a release was made with (exit code 2)."""


class VerificationError(HyperdpError):
    """A claim of a certificate, release or ledger does not hold (exit code 2)."""


class BudgetRefusedError(HyperdpError):
    """The ledger refuses to spend this budget (exit code 3)."""

    exit_code = 3
