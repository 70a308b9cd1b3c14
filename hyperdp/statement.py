"""What every certificate has in common: one spelling, one signature, and a strict reader."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, ClassVar, Self, get_type_hints

from hyperdp import keys
from hyperdp.errors import VerificationError, printable

SIGNATURE_FIELDS = ("public_key", "signature")

_SIZE_LIMIT = 2**20  # bytes; no certificate comes near it


class Statement:
    """Base of the signed dataclasses that stand beside what is released.

    A subclass is a frozen keyword-only dataclass of plain types with the fields `format`,
    `public_key` and `signature`, and lists of texts alone.

    Attributes:
        FORMAT: the value of `format`, with its version.
    """

    FORMAT: ClassVar[str]
    format: str
    public_key: str
    signature: str

    def signed(self) -> Self:
        """The same statement under the operator's key."""
        public_key, signature = keys.sign(self._signed_part())
        return dataclasses.replace(self, public_key=public_key, signature=signature)  # type: ignore[type-var]

    def _signed_part(self) -> bytes:
        fields = vars(self)
        return keys.canonical_json({k: v for k, v in fields.items() if k not in SIGNATURE_FIELDS})

    def to_bytes(self) -> bytes:
        """The one spelling of this statement on disk."""
        return keys.canonical_json(vars(self))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a statement and check that it is signed and spelt as `to_bytes` spells it.

        Raises:
            VerificationError: it is not, by as little as one byte.
        """
        kinds = {name: getattr(t, "__origin__", t) for name, t in get_type_hints(cls).items()}
        try:
            if len(data) > _SIZE_LIMIT:
                raise ValueError("too long")
            found = cls(**json.loads(data))
            if any(type(v) is not kinds[k] for k, v in vars(found).items()):
                raise TypeError("a field of another type")
            lists = [v for v in vars(found).values() if isinstance(v, list)]
            if any(type(text) is not str for values in lists for text in values):
                raise TypeError("a list of other things than texts")
            spelling = found.to_bytes()
        except (ValueError, TypeError, RecursionError):
            raise failed("a certificate in hyperdp's format", "something else") from None
        if spelling != data or found.format != cls.FORMAT:
            raise failed(f"the spelling of {cls.FORMAT}, byte for byte", "another one")
        if not keys.signature_holds(
            found._signed_part(), public_key=found.public_key, signature=found.signature
        ):
            raise failed("a signature over the whole certificate", "one that does not hold")
        return found


def format_of(data: bytes) -> str:
    """The format that a certificate's bytes claim to be of, or "" where they claim none."""
    try:
        claimed: Any = json.loads(data)["format"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return ""
    return claimed if isinstance(claimed, str) else ""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One line of a verification.

    Attributes:
        name: what is claimed.
        claimed: as the certificate says.
        recomputed: as found, by the way that `name` tells.
    """

    name: str
    claimed: str
    recomputed: str

    def __post_init__(self) -> None:
        for name in ("name", "claimed", "recomputed"):
            object.__setattr__(self, name, printable(getattr(self, name)))

    @classmethod
    def checked(cls, name: str, claimed: object, recomputed: object, holds: bool) -> Claim:
        """A claim that holds.

        Raises:
            VerificationError: it does not.
        """
        if not holds:
            raise failed(f"{name}: {claimed}", str(recomputed))
        return cls(name=name, claimed=str(claimed), recomputed=str(recomputed))


def failed(expected: str, found: str) -> VerificationError:
    """The error of every claim that does not hold."""
    return VerificationError(
        expected=printable(expected),
        found=printable(found),
        todo="Do not rely on this release; obtain the original.",
    )
