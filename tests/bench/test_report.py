import json

from bench.report import Report
from bench.sampling import Samples


def made_report() -> Report:
    report = Report("made")
    for value in (3.0, 1.0, 2.0):
        report.add("ours", "s", value, reference=("theirs", "missing", "nothing"))
        report.add("theirs", "s", 2 * value)
        report.add("nothing", "", 0.0)
    return report


def test_ratio_is_of_medians_and_only_to_what_was_measured():
    """A ratio compares medians of the same run; a reference that was skipped, or that is 0, gives none."""
    report = made_report()
    assert report.ratios(report.lines["ours"]) == {"theirs": 0.5}
    assert report.ratios(report.lines["theirs"]) == {}


def test_table_and_json_hold_every_line_and_note():
    """What was left out is said in the table and in the JSON, once."""
    report = made_report()
    report.note("SKIPPED: theirs")
    report.note("SKIPPED: theirs")
    assert report.encode_table().count("note: SKIPPED: theirs") == 1
    assert "0.50 × theirs" in report.encode_table()
    encoded = json.loads(report.encode_json())
    assert encoded["notes"] == ["SKIPPED: theirs"]
    assert [line["name"] for line in encoded["lines"]] == ["ours", "theirs", "nothing"]
    assert encoded["lines"][0]["values"] == [3.0, 1.0, 2.0]


def test_samples_are_sorted_by_library_and_by_what_the_kernel_did():
    """A sample counts for its process and for what its library or its symbol is about."""
    samples = Samples()
    samples.parse(
        "  41  7f0 [unknown] (/x/isal/igzip_lib.cpython-311.so)\n"
        "  41  ff1 _copy_to_iter ([kernel.kallsyms])\n"
        "  41  ff2 fuse_copy_fill ([kernel.kallsyms])\n"
        "  42  ff3 clear_page_erms ([kernel.kallsyms])\n"
        "  42  7f4 sha256_block_data_order (/usr/lib/libcrypto.so.3)\n"
    )
    assert list(samples.used_s[41]) == [
        "inflating (isal)",
        "kernel, copying what was read",
        "kernel, FUSE and copying of answers",
    ]
    assert list(samples.used_s[42]) == ["kernel, memory and page cache", "SHA-256"]
