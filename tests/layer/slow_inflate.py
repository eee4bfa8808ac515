"""Inflate in plain Python, and from it the checkpoints of a gzip layer by the words of `docs/format.md` alone.

For tests of this folder: nothing of kitfs is used, so what agrees with it does not depend on a library. Loaded by path.
"""

import hashlib
from dataclasses import dataclass, field

ORDER = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
LENGTHS = [(3, 0), (4, 0), (5, 0), (6, 0), (7, 0), (8, 0), (9, 0), (10, 0), (11, 1), (13, 1), (15, 1), (17, 1),
           (19, 2), (23, 2), (27, 2), (31, 2), (35, 3), (43, 3), (51, 3), (59, 3), (67, 4), (83, 4), (99, 4),
           (115, 4), (131, 5), (163, 5), (195, 5), (227, 5), (258, 0)]  # fmt: skip
DISTANCES = [(1, 0), (2, 0), (3, 0), (4, 0)] + [
    ((2 + half << bits) + 1, bits) for bits in range(1, 14) for half in (0, 1)
]


class Bits:
    """The bits of a stream, lowest first."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0  # bits taken

    def peek(self, count: int) -> int:
        byte = self.at >> 3
        return int.from_bytes(self.data[byte : byte + 4], "little") >> (self.at & 7) & ((1 << count) - 1)

    def take(self, count: int) -> int:
        value = self.peek(count)
        self.at += count
        return value


def table_of(lengths: list[int]) -> list[tuple[int, int]]:
    """What 15 bits begin with: symbol and bits of its code."""
    table = [(-1, 0)] * (1 << 15)
    code = 0
    for bits in range(1, 16):
        for symbol, length in enumerate(lengths):
            if length == bits:
                first = int(f"{code:0{bits}b}"[::-1], 2)
                table[first :: 1 << bits] = [(symbol, bits)] * (1 << 15 - bits)
                code += 1
        code <<= 1
    return table


@dataclass
class Stream:
    """A gzip stream, decoded.

    `sources` has for each byte the one that it was copied from, or its own place; `blocks` the (bit, byte) where blocks
    end that are not the last of their member; `members` the (bit, byte) where the data of members begins.
    """

    decoded: bytearray = field(default_factory=bytearray)
    sources: list[int] = field(default_factory=list)
    blocks: list[tuple[int, int]] = field(default_factory=list)
    members: list[tuple[int, int]] = field(default_factory=list)
    stop: int = 0


def decode(raw: bytes) -> Stream:
    """Decode gzip members without optional header fields, and zeros behind them."""
    stream, bits = Stream(), Bits(raw)
    while raw[bits.at // 8 : bits.at // 8 + 1] == b"\x1f":
        header = 10
        if raw[bits.at // 8 + 3] & 8:
            header = raw.index(b"\0", bits.at // 8 + 10) + 1 - bits.at // 8
        bits.at += 8 * header
        stream.members.append((bits.at, len(stream.decoded)))
        while not _block(bits, stream):
            stream.blocks.append((bits.at, len(stream.decoded)))
        bits.at = -(-bits.at // 8) * 8 + 64
        stream.stop = bits.at // 8
    return stream


def _block(bits: Bits, stream: Stream) -> bool:
    """Decode a block; whether it is the member's last."""
    is_last, kind = bits.take(1), bits.take(2)
    if kind == 0:
        bits.at = -(-bits.at // 8) * 8
        size = bits.take(16)
        start = bits.at // 8 + 2
        stream.sources.extend(range(len(stream.decoded), len(stream.decoded) + size))
        stream.decoded += bits.data[start : start + size]
        bits.at = 8 * (start + size)
        return bool(is_last)
    symbols = [8] * 144 + [9] * 112 + [7] * 24 + [8] * 8
    distances = [5] * 30
    if kind == 2:
        counts = bits.take(5) + 257, bits.take(5) + 1, bits.take(4) + 4
        codes = [0] * 19
        for place in ORDER[: counts[2]]:
            codes[place] = bits.take(3)
        lengths = _lengths(bits, table_of(codes), counts[0] + counts[1])
        symbols, distances = lengths[: counts[0]], lengths[counts[0] :]
    _symbols(bits, table_of(symbols), table_of(distances), stream)
    return bool(is_last)


def _lengths(bits: Bits, table: list[tuple[int, int]], count: int) -> list[int]:
    lengths: list[int] = []
    while len(lengths) < count:
        symbol, size = table[bits.peek(15)]
        bits.at += size
        if symbol < 16:
            lengths.append(symbol)
        elif symbol == 16:
            lengths += [lengths[-1]] * (3 + bits.take(2))
        else:
            lengths += [0] * (3 + bits.take(3) if symbol == 17 else 11 + bits.take(7))
    return lengths


def _symbols(bits: Bits, symbols: list[tuple[int, int]], distances: list[tuple[int, int]], stream: Stream) -> None:
    decoded, sources = stream.decoded, stream.sources
    while True:
        symbol, size = symbols[bits.peek(15)]
        bits.at += size
        if symbol < 256:
            sources.append(len(decoded))
            decoded.append(symbol)
            continue
        if symbol == 256:
            return
        base, extra = LENGTHS[symbol - 257]
        length = base + bits.take(extra)
        symbol, size = distances[bits.peek(15)]
        bits.at += size
        base, extra = DISTANCES[symbol]
        distance = base + bits.take(extra)
        for _ in range(length):
            sources.append(len(decoded) - distance)
            decoded.append(decoded[-distance])


@dataclass
class Span:
    """A checkpoint with where decoding begins, and what an image index says of it."""

    bit: int
    offset: int
    lead: int
    lead_bits: int
    window: bytes
    range_digest: bytes


def find_spans(raw: bytes, stream: Stream) -> list[Span]:
    """The checkpoints of a layer, none of whose spans is too large."""
    places = _find_places(stream)
    found: list[Span] = []
    prefers, pause, left = False, 0, 0
    for number, (place, lead) in enumerate(places):
        following = places[number + 1][0] if number + 1 < len(places) else (8 * stream.stop, len(stream.decoded))
        begin = place
        if lead is not None:
            direct = len(_references(stream, place, place))
            led = len(_references(stream, lead, place))
            if prefers and led <= 384:
                begin = lead
            elif direct <= 384:
                prefers = False
            elif not prefers and left > 0:
                left -= 1
            elif 2 * led <= direct:
                begin, prefers, pause = lead, True, 0
            else:
                prefers = False
                pause = left = min(max(2 * pause, 1), 64)
        start = begin[0] // 8 if number else 0
        digest = hashlib.sha256(raw[start : -(-following[0] // 8)]).digest()
        window = _window(stream, begin, _references(stream, begin, place))
        found.append(Span(*place, place[1] - begin[1], place[0] - begin[0], window, digest))
    return found


Place = tuple[int, int]


def _find_places(stream: Stream) -> list[tuple[Place, Place | None]]:
    """Checkpoints and their leads."""
    events = sorted([(*place, True) for place in stream.members] + [(*place, False) for place in stream.blocks])
    chosen: list[tuple[Place, Place | None]] = [(stream.members[0], None)]
    while True:
        due = chosen[-1][0][1] + 524288
        place = _first(events, due, len(stream.decoded))
        if place is None:
            return chosen
        member = max(start for start in stream.members if start <= place)
        lead_due = max(due - 45056, chosen[-1][0][1] + 1)
        lead = _first([event for event in events if event[:2] >= member], lead_due, len(stream.decoded))
        if lead is not None and (lead >= place or lead[1] == place[1] or place[1] - lead[1] > 131072):
            lead = None
        chosen.append((place, lead))


def _first(events: list[tuple[int, int, bool]], due: int, size: int) -> Place | None:
    """The first block that ends after a byte, or member that starts there or later, if a byte follows."""
    for bit, offset, is_member in events:
        if offset >= size:
            return None
        if offset > due or (is_member and offset == due):
            return bit, offset
    return None


def _references(stream: Stream, begin: Place, place: Place) -> set[int]:
    """Places in the decoded layer before `begin` that the first 32768 bytes of the span come from."""
    member_stop = min([start[1] for start in stream.members if start > place] + [len(stream.decoded)])
    origins: dict[int, int] = {}
    for at in range(begin[1], min(place[1] + 32768, member_stop)):
        source = stream.sources[at]
        origins[at] = origins[source] if begin[1] <= source < at else source
    return {source for at, source in origins.items() if at >= place[1] and source < begin[1]}


def _window(stream: Stream, begin: Place, references: set[int]) -> bytes:
    if not references:
        return b""
    member_start = max(start[1] for start in stream.members if start <= begin)
    first = max(member_start, begin[1] - 32768)
    return bytes(stream.decoded[at] if at in references else 0 for at in range(first, begin[1]))
