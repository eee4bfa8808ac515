"""The pool that decodes spans: order, sharing, bounds, and what happens to errors. Sources here are made up."""

import threading

import pytest

from kitfs.layer.span_pool import _AHEAD_MAX, SpanPool


class Source:
    """Decodes to 1000 bytes when it is let; remembers the order in which it was asked."""

    def __init__(self, key: str = "layer", *, is_open: bool = True) -> None:
        self.key = key
        self.gate = threading.Event()
        self.begun = threading.Event()
        self.order: list[int] = []
        if is_open:
            self.gate.set()

    def find(self, span: int) -> None:
        """Nothing is kept."""

    def keep(self, span: int, data: bytes) -> None:
        """Nothing is kept."""

    def decode(self, span: int) -> bytes:
        self.order.append(span)
        self.begun.set()
        assert self.gate.wait(30)
        if span == 13:
            raise OSError(5, "broken disk")
        return bytes((span % 256,)) * 1000


@pytest.fixture
def pool():
    made = SpanPool(threads=1, cache_size=10_000)
    yield made
    made.close()
    assert not [thread for thread in made._threads if thread.is_alive()]


def test_what_is_waited_for_comes_before_what_is_ahead(pool):
    """An urgent span overtakes spans ahead; one of these that becomes urgent is decoded once, early."""
    source = Source(is_open=False)
    first = pool.request(source, 0)
    assert source.begun.wait(30)
    pool.decode_ahead(source, range(1, 8))
    urgent, turned = pool.request(source, 20), pool.request(source, 5)
    source.gate.set()
    assert [task.wait()[0] for task in (first, urgent, turned)] == [0, 20, 5]
    pool.drop(source)
    assert source.order[:3] == [0, 20, 5]
    assert sorted(source.order) == sorted(set(source.order))


def test_one_decoding_for_all_and_then_the_cache(pool):
    """Requests for a span under way share its task; later ones find it in the cache, under an equal key too."""
    source = Source(is_open=False)
    tasks = [pool.request(source, 1) for _ in range(5)]
    assert len(set(map(id, tasks))) == 1
    assert pool.find(source, 1) is None
    source.gate.set()
    assert {task.wait() for task in tasks} == {b"\1" * 1000}
    assert pool.find(source, 1) == pool.find(Source(), 1) == pool.request(Source(), 1).result() == b"\1" * 1000
    assert pool.find(Source("other"), 1) is None
    assert source.order == [1]
    assert pool.decoded_count == 1


def test_the_cache_is_bounded_and_keeps_what_was_used_last(pool):
    """Of 12 spans of 1000 bytes a cache of 10 000 keeps ten, and one that was used again among them."""
    source = Source()
    for span in range(12):
        pool.request(source, span).wait()
        assert pool.find(source, 0) is not None
    assert [span for span in range(12) if pool.find(source, span) is None] == [1, 2]


def test_what_is_ahead_is_bounded(pool):
    """A long list of spans ahead is cut at its old end, and those dropped can be wanted again."""
    source = Source(is_open=False)
    first = pool.request(source, 0)
    assert source.begun.wait(30)
    pool.decode_ahead(source, range(1, _AHEAD_MAX + 50))
    assert pool.pending(source) == 1 + _AHEAD_MAX
    wanted = pool.request(source, 2)
    source.gate.set()
    assert first.wait() and wanted.wait() == b"\2" * 1000
    pool.drop(source)


def test_errors_reach_every_waiter_and_are_not_kept(pool):
    """A failed span raises for all who wait; the next request decodes again; a callback comes all the same."""
    source = Source(is_open=False)
    tasks = [pool.request(source, 13) for _ in range(3)]
    called = threading.Event()
    tasks[0].call_when_done(called.set)
    source.gate.set()
    for task in tasks:
        with pytest.raises(OSError, match="broken disk"):
            task.wait()
    assert called.wait(30)
    late = threading.Event()
    tasks[0].call_when_done(late.set)
    assert late.is_set()
    with pytest.raises(OSError, match="broken disk"):
        pool.request(source, 13).wait()
    assert source.order == [13, 13]
    assert pool.decoded_count == 0


def test_dropping_a_source_waits_for_its_decoding_only(pool):
    """After drop nothing of the source is queued or running; what others want is still done."""
    source, other = Source(is_open=False), Source("other")
    task = pool.request(source, 0)
    assert source.begun.wait(30)
    pool.decode_ahead(source, range(1, 5))
    pool.decode_ahead(other, [7])
    dropping = threading.Thread(target=pool.drop, args=(source,))
    dropping.start()
    source.gate.set()
    dropping.join(30)
    assert not dropping.is_alive()
    assert task.wait() == b"\0" * 1000
    assert pool.pending(source) == 0
    assert source.order == [0]
    assert pool.request(other, 7).wait() == b"\7" * 1000
