"""What the eviction tests run beside each other: ``member_child.py VERB HOME ROUNDS``, one process each.

``evict`` makes room again and again, ``read`` opens members and compares what it reads, ``make`` stores them anew.
Exit code 0, or a traceback.
"""

import os
import sys
from pathlib import Path

from kitfs.digest import Digest
from kitfs.store.errors import MemberNotFound
from kitfs.store.quota import Quota
from kitfs.store.store import Store

CONTENTS = [bytes([number]) * (1000 + number) for number in range(8)]
DIGESTS = [Digest.of(data) for data in CONTENTS]


def make(store, number):
    with store.lease("make") as lease:
        with store.ingest(lease) as ingest:
            ingest.write(CONTENTS[number])
            ingest.commit_member(DIGESTS[number])
        change = store.change(lease)
        change.add_member(DIGESTS[number], len(CONTENTS[number]))
        change.commit()
        os.close(store.open_member(DIGESTS[number])[0])  # the lease keeps it
    return 1


def read(store, number):
    """Bytes that are right however long the file is open, or a clear no."""
    try:
        fd, is_trusted = store.open_member(DIGESTS[number])
    except MemberNotFound:
        return 0
    data = os.pread(fd, 4096, 0)
    assert data == CONTENTS[number], (number, is_trusted, len(data))
    if is_trusted:
        path = store.layout.member(DIGESTS[number])
        assert os.path.samestat(os.lstat(path), os.fstat(fd)), "evicted while it was open"
    os.close(fd)
    return 1


def evict(store, number):
    store.quota = Quota(size=4000)
    return int(store.make_room(1000 + number))


def main():
    verb, home, rounds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    do = {"make": make, "read": read, "evict": evict}[verb]
    with Store.open(home) as store:
        print(sum(do(store, (step * 5 + os.getpid()) % len(CONTENTS)) for step in range(rounds)))


main()
