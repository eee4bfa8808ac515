"""What of the environment verbs read that make ModelKits."""

from __future__ import annotations

import os

from kitfs.errors import UsageError


class EnvironmentMalformed(UsageError):
    """A variable of the environment that holds what it can not.

    Attributes:
        name: The variable.
    """

    def __init__(self, name: str, value: str, wanted: str) -> None:
        super().__init__(f"{name}={value[:100]!r}: expected {wanted}")
        self.name = name


def source_date_epoch() -> int | None:
    """The creation time to record, seconds since the epoch, or None for now (reproducible-builds.org).

    Raises:
        EnvironmentMalformed: when the variable is no such number.
    """
    value = os.environ.get("SOURCE_DATE_EPOCH")
    if not value:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 12):
        raise EnvironmentMalformed("SOURCE_DATE_EPOCH", value, "seconds since 1970 as an integer")
    return int(value)
