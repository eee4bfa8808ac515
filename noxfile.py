"""Sessions for people and machines: ``nox -s lint types tests``; ``./dev test`` runs the same steps without nox."""

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True


def _install(session: nox.Session, extra: str = "test") -> None:
    session.install("--editable", f".[{extra}]")


@nox.session
def lint(session: nox.Session) -> None:
    """Style, format and import contracts."""
    _install(session)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Types, strictly."""
    _install(session)
    session.run("mypy", "--strict", "-p", "kitfs", "-p", "bench")


@nox.session
def tests(session: nox.Session) -> None:
    """All tests; arguments after ``--`` go to pytest."""
    _install(session)
    session.run("pytest", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """One measurement: ``nox -s bench -- read``."""
    _install(session, "bench")
    session.run("python", "-m", "bench", *session.posargs)


@nox.session
def campaign(session: nox.Session) -> None:
    """The long crash, error, bit flip and garbage collection campaigns, and ten times the examples of properties."""
    _install(session)
    session.run("pytest", *session.posargs, env={"KITFS_CAMPAIGN": "1", "HYPOTHESIS_PROFILE": "nightly"})


@nox.session
def gc(session: nox.Session) -> None:
    """Two minutes of collecting ten times a second beside pack, import, unpack, tag, remove, mount and read."""
    _install(session)
    session.run("pytest", "-s", "tests/e2e/test_gc_under_load.py", *session.posargs, env={"KITFS_GC_CAMPAIGN_S": "120"})


@nox.session
def failover(session: nox.Session) -> None:
    """1000 workers, 100 daemons and 100 zygotes are killed under eight verifying readers; prints their stalls."""
    _install(session)
    env = {"KITFS_CAMPAIGN": "1"}
    session.run("pytest", "-s", "tests/mount/test_failover_campaign.py", *session.posargs, env=env)


@nox.session
def posix(session: nox.Session) -> None:
    """fsx, fio and pjdfstest on writable mounts, each where it is on PATH; half an hour (docs/posix.md)."""
    _install(session)
    env = {"KITFS_POSIX": "1"}
    session.run("pytest", "-s", "tests/mount/test_writable_tools.py", *session.posargs, env=env)


@nox.session
def demo(session: nox.Session) -> None:
    """The demonstration of ``./dev demo``."""
    _install(session)
    session.run("python", "-m", "bench.demo")
