"""What can be wrong with a layer: its form when it arrives, its bytes when it is read."""

from __future__ import annotations

from kitfs.digest import Digest
from kitfs.errors import IntegrityError, MalformedError


class LayerMalformed(MalformedError):
    """A layer whose bytes are not what its media type says, or that breaks a limit.

    Attributes:
        digest: The layer, where it is known.
        offset: Byte of the published layer, or of the decoded one for what is wrong with its tar.
        reason: What is wrong, in words.
    """

    def __init__(self, digest: Digest | None, offset: int, reason: str) -> None:
        super().__init__(f"layer {digest or '(digest not known yet)'}, byte {offset}: {reason}")
        self.digest = digest
        self.offset = offset
        self.reason = reason


class LayerCorrupt(IntegrityError):
    """Stored bytes of a layer that are not those that were verified when it arrived.

    Attributes:
        layer: The layer's blob.
        member: Index of the member in the layer's table of contents, or None for the layer as a whole.
        span: Number of the span in the member, or None where there are no spans.
        offset: Byte of the blob.
        reason: What is wrong, in words.
    """

    hint = "import or pull the ModelKit again: that puts the right bytes in place"

    def __init__(self, layer: Digest, *, member: int | None, span: int | None, offset: int, reason: str) -> None:
        place = f"blob {layer}, byte {offset}"
        if member is not None:
            place += f", member {member}"
        if span is not None:
            place += f", span {span}"
        super().__init__(f"{place}: {reason}")
        self.layer = layer
        self.member = member
        self.span = span
        self.offset = offset
        self.reason = reason
