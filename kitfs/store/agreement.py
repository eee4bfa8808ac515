"""Do the index's tables, its counts and ``tags.log`` tell the same story? Asked by GC before it sweeps, and by fsck.

LMDB has no checksums of its own: a flipped bit can make a key vanish without an error (10 of 400 flips), and what
a vanished tag kept would be swept. Reads only.
"""

from __future__ import annotations

from kitfs.store import schema, tags, tags_log
from kitfs.store.index import Txn
from kitfs.store.layout import Layout
from kitfs.store.records import CountRecord, ManifestRecord


def count_tags(txn: Txn) -> CountRecord:
    """The count of tags as the table has them.

    Raises:
        RecordCorrupt: when a tag's record does not verify.
    """
    count = CountRecord()
    for repository, tag, record in tags.iter_tags(txn):
        count = count.toggled(tags.element(repository, tag, record.manifest), 1)
    return count


def count_manifests(txn: Txn) -> CountRecord:
    """The count of manifests as the table has them.

    Raises:
        RecordCorrupt: when a manifest's record does not verify.
    """
    count = CountRecord()
    for key, _ in txn.iter(schema.MANIFESTS, ManifestRecord):
        count = count.toggled(key, 1)
    return count


def count_tables(txn: Txn) -> list[tuple[str, bytes, CountRecord]]:
    """(what, name of its count, the count as the table has it) of each table that is counted.

    Raises:
        RecordCorrupt: when a record of a tag or manifest does not verify.
    """
    return [
        ("tags", schema.COUNT_TAGS, count_tags(txn)),
        ("ModelKits", schema.COUNT_MANIFESTS, count_manifests(txn)),
    ]


def find_disagreements(txn: Txn, layout: Layout) -> list[str]:
    """What does not agree, one sentence each; nothing when all is well.

    Raises:
        RecordCorrupt: when a record of a tag, manifest or count does not verify.
        TagsLogCorrupt, StoreWriteFailed: when the log can not be read.
    """
    problems = []
    for what, name, actual in count_tables(txn):
        recorded = txn.find(schema.COUNTS, name, CountRecord) or CountRecord()
        if recorded.count != actual.count:
            problems.append(f"the index has {actual.count} {what}, its count says {recorded.count}")
        elif recorded != actual:
            problems.append(f"the index has other {what} than its count says")
    if not problems:
        problems = _compare_log(txn, layout)
    return problems


def _compare_log(txn: Txn, layout: Layout) -> list[str]:
    # Only as far as this transaction knows: another process may be appending, and its commit is not seen here.
    logged = tags_log.replay(layout.tags_log, tags.log_position(txn))
    for repository, tag, record in tags.iter_tags(txn):
        if logged.pop((repository, tag), None) != str(record.manifest):
            return [f"tags.log does not say that {repository}:{tag} is {record.manifest}"]
    return [f"tags.log says that {repository}:{tag} is {digest}" for (repository, tag), digest in logged.items()][:1]
