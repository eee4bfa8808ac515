"""References: kit's grammar with the specification's rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs.digest import Digest
from kitfs.oci.reference import (
    Reference,
    ReferenceMalformed,
    looks_like_reference,
    parse_reference,
    parse_references,
    parse_repository,
    parse_tag,
)

HEX = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
DIGEST = Digest(HEX)

# The first ten are the cases of kitops' own test table (pkg/lib/repo/util/reference_test.go).
WELL_FORMED = [
    ("testregistry.io/org/repository:tag", Reference("testregistry.io/org/repository", "tag")),
    ("test-repository:tag", Reference("localhost/test-repository", "tag")),
    ("localhost:5000/org/repository:tag", Reference("localhost:5000/org/repository", "tag")),
    (f"sha256:{HEX}", Reference("localhost/_", None, DIGEST)),
    ("a/b/c/d", Reference("localhost/a/b/c/d", "latest")),
    ("test.io/a/b/c/d", Reference("test.io/a/b/c/d", "latest")),
    (f"testrepo@sha256:{HEX}", Reference("localhost/testrepo", None, DIGEST)),
    (f"testrepo:ignoredtag@sha256:{HEX}", Reference("localhost/testrepo", None, DIGEST)),
    (f"testorg/testrepo@sha256:{HEX}", Reference("localhost/testorg/testrepo", None, DIGEST)),
    (f"testorg.com/testrepo@sha256:{HEX}", Reference("testorg.com/testrepo", None, DIGEST)),
    ("myllm:3.1.4", Reference("localhost/myllm", "3.1.4")),
    ("localhost/myllm", Reference("localhost/myllm", "latest")),
    ("registry.example.com:8080/acme/team_a/tuned:1", Reference("registry.example.com:8080/acme/team_a/tuned", "1")),
    ("host_x/y:1", Reference("localhost/host_x/y", "1")),
    ("x/a--b__c.d/e---f:_A-.9", Reference("localhost/x/a--b__c.d/e---f", "_A-.9")),
    ("a:" + "t" * 128, Reference("localhost/a", "t" * 128)),
    ("127.0.0.1:65535/x:1", Reference("127.0.0.1:65535/x", "1")),
    ("sha256:abc", Reference("localhost/sha256", "abc")),
]

MALFORMED = [
    "",
    ":",
    "@",
    "a:",
    "a:.x",
    "a:-x",
    "a:" + "t" * 129,
    "a:x y",
    "a:x\n",
    "a:x\0",
    "a:é",
    "a//b",
    "/a",
    "a/",
    "a/./b",
    "../a",
    "a/..",
    "A",
    "a/B:1",
    "Registry.example.com/x",
    ".a",
    "a.",
    "_a",
    "a___b",
    "a..b",
    "a_-b",
    "-a",
    "host_x.example/y",
    "host_x:5000/y",
    "example..com/x",
    "-x.com/y",
    "host:99999/x",
    "host:0/x",
    "host:/x",
    "host:٣/x",
    "host:1:2/x",
    "a:b:c",
    "a@sha256:" + "0" * 63,
    "a@sha256:" + "A" * 64,
    "a@sha512:" + "0" * 128,
    "a@",
    "x" * 64 + ".com/y",
    "a/" * 130 + "a",
    "a b",
    "a\n",
    "é",
    "_",
    "localhost/_/x",
]


@pytest.mark.parametrize(("text", "expected"), WELL_FORMED)
def test_well_formed_reference_is_taken_apart(text: str, expected: Reference):
    """A reference gives the repository with its host, and the tag or the digest."""
    assert parse_reference(text) == expected


@pytest.mark.parametrize("text", MALFORMED, ids=lambda text: repr(text[:30]))
def test_malformed_reference_is_refused_with_its_text(text: str):
    """Whatever breaks the grammar is refused, and the error says what was given."""
    with pytest.raises(ReferenceMalformed) as caught:
        parse_reference(text)
    assert caught.value.text == text
    assert caught.value.reason


def test_missing_tag_is_left_open_when_asked():
    """Without a default, a bare name has no tag."""
    assert parse_reference("a", default_tag=None) == Reference("localhost/a")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("myllm:3.1.4", "myllm:3.1.4"),
        ("localhost:5000/a:1", "localhost:5000/a:1"),
        (f"sha256:{HEX}", f"sha256:{HEX}"),
        (f"a@sha256:{HEX}", f"a@sha256:{HEX}"),
        ("localhost_x/a", "localhost_x/a:latest"),
    ],
)
def test_display_hides_what_was_filled_in(text: str, shown: str):
    """The shown form is kit's: no localhost/, no placeholder repository."""
    assert parse_reference(text).display == shown


def test_tags_after_commas_share_the_repository():
    """``name:a,b`` names two tags of one repository, as kit's -t takes it."""
    assert parse_references("x.io/a:1,2") == [Reference("x.io/a", "1"), Reference("x.io/a", "2")]


@pytest.mark.parametrize("text", ["a:1,", "a:1,.x", f"a@sha256:{HEX},b", "a:1,b:2"])
def test_malformed_further_tags_are_refused(text: str):
    """Tags after a comma obey the grammar, and a digest takes none."""
    with pytest.raises(ReferenceMalformed):
        parse_references(text)


def test_parts_are_checked_on_their_own():
    """A repository name gets its host, a tag stays as it is, and neither takes what belongs to the other."""
    assert parse_repository("myllm") == "localhost/myllm"
    assert parse_repository("localhost/_") == "localhost/_"
    assert parse_tag("3.1.4") == "3.1.4"
    for check, text in [(parse_repository, "a:1"), (parse_tag, "a/b"), (parse_tag, "")]:
        with pytest.raises(ReferenceMalformed):
            check(text)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("model", False),
        ("./model", False),
        ("model:v2", True),
        (f"a@sha256:{HEX}", True),
        ("s3://bucket/x", False),
        ("http://x/y", False),
        ("A:1", False),
        ("a b:1", False),
        ("a:1,2", True),
    ],
)
def test_path_of_a_kitfile_is_told_from_a_reference(path: str, expected: bool):
    """A path is a reference when it holds : or @ and parses."""
    assert looks_like_reference(path) is expected


COMPONENTS = st.from_regex(r"[a-z0-9]{1,5}(?:(?:\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}", fullmatch=True)
HOSTS = st.sampled_from(["localhost", "localhost:5000", "registry.example.com", "10.0.0.1:80", "a-b.c"])
TAGS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)


@given(HOSTS, st.lists(COMPONENTS, min_size=1, max_size=4), TAGS)
def test_reference_survives_being_written_and_read(host: str, components: list[str], tag: str):
    """Reading the text of a reference gives the reference, with a tag and with a digest."""
    repository = f"{host}/{'/'.join(components)}"
    for reference in (Reference(repository, tag), Reference(repository, None, DIGEST)):
        assert parse_reference(str(reference)) == reference
        assert parse_repository(reference.repository) == repository
        assert f"{reference.host}/{reference.path}" == repository


@given(st.text(alphabet=st.sampled_from("ab1.:/@_-,A \n\0é"), max_size=30))
def test_any_text_parses_or_is_refused(text: str):
    """No text raises anything but our error, and what is accepted is stable."""
    try:
        reference = parse_reference(text)
    except ReferenceMalformed:
        return
    assert parse_reference(str(reference)) == reference
