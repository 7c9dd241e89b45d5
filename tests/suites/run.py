"""`make dbsuites SUITES=DIR`: the test suites of database drivers, each direct and through the database door.

DIR holds their repositories, checked out at the versions that are installed: asyncpg, psycopg, psycopg2, sqlalchemy.
What ends otherwise through the door than direct is run again, both ways, by itself; what differs every time is listed
under the table. Exit status 1 where something differs that `catalog.py` gives no reason for.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from catalog import SUITES, Suite
from postgres_cluster import Cluster
from postgres_gateway import PostgresGateway

HERE = Path(__file__).parent
ME = "suite"  # the user, a superuser as these suites expect; its password is the same
OPTIONS = ("max_prepared_transactions=20", "wal_level=logical", "max_locks_per_transaction=256")
AGAIN = 2  # times that what differs is run by itself
LONGEST = 60  # seconds a test
Ended = dict[str, tuple[str, str]]  # how each test ended, and what it said


class Place:
    """A database of a suite's own in a fresh cluster, direct or behind a door."""

    def __init__(self, scratch: Path, python: str, options: argparse.Namespace) -> None:
        self._scratch, self._python, self._options = scratch, python, options

    def run(self, suite: Suite, way: str, tests: Sequence[str]) -> Ended:
        cluster = Cluster.made(options=OPTIONS, max_connections=200)
        try:
            with cluster.control() as control:
                control.execute(f"create role {ME} superuser login password '{ME}'")
                if suite.database != "postgres":
                    control.execute(f"create database {suite.database} owner {ME} template template0")
            with cluster.control(suite.database) as control:
                for statement in suite.statements:
                    control.execute(statement)
            with self._address(cluster, suite.database, way) as url:
                return self._outcomes(suite, way, url, tests)
        finally:
            cluster.close()

    @contextmanager
    def _address(self, cluster: Cluster, database: str, way: str) -> Iterator[str]:
        direct = f"postgresql://{ME}:{ME}@127.0.0.1:{cluster.port}/{database}"
        if way == "direct":
            yield direct
            return
        size = self._options.pool
        policy = {"mode": self._options.mode, "clients": 500, "pin": {"max": size}}
        with PostgresGateway(cluster, database, direct, pool={"max": size, "wait": "10s"}, **policy) as pooler:
            yield pooler.url

    def _outcomes(self, suite: Suite, way: str, url: str, tests: Sequence[str]) -> Ended:
        out = self._scratch / "outcomes"
        out.unlink(missing_ok=True)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        environ |= {"SUITE_OUTCOMES": str(out), "PYTHONPATH": str(HERE), **suite.environ(url)}
        command = ["nice", self._python, "-m", "pytest", "-p", "outcomes", "-o", f"cache_dir={self._scratch}/cache", "-q", "--tb=short", "--continue-on-collection-errors",
                   f"--timeout={LONGEST}", *suite.arguments(url), *tests]  # fmt: skip
        log = self._scratch / f"{suite.slug}.{way}.log"
        with open(log, "ab") as said:
            subprocess.run(command, cwd=self._folder(suite), env=environ, stdout=said, stderr=said)
        if not out.exists():
            sys.exit(f"dbsuites: {suite.name} ran nothing; see {log}")
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        return {line["test"]: (line["ended"], line["said"]) for line in lines}

    def _folder(self, suite: Suite) -> Path:
        source = Path(self._options.suites, suite.folder)
        if not suite.copied:
            return source
        copy = self._scratch / suite.folder
        if not copy.exists():
            for part in suite.copied:
                (copy / part).parent.mkdir(parents=True, exist_ok=True)
                if (source / part).is_dir():
                    shutil.copytree(source / part, copy / part)
                else:
                    shutil.copy(source / part, copy / part)
            for part, ours in suite.added.items():
                shutil.copy(HERE / ours, copy / part)
                (copy / part).with_name("__init__.py").touch()
        return copy


def compare(place: Place, suite: Suite, only: Sequence[str]) -> tuple[Ended, Ended, dict[str, str]]:
    """How each test ended, direct and through; which differ every time, and what they said through the door."""
    direct, through = (place.run(suite, way, only or suite.tests) for way in ("direct", "through"))
    differ = [test for test in direct | through if _differs(direct, through, test)]
    for _ in range(AGAIN):
        if differ:
            again = [place.run(suite, way, differ) for way in ("direct", "through")]
            differ = [test for test in differ if _differs(*again, test)]
    return direct, through, {test: through.get(test, ("missing", "it did not run"))[1] for test in differ}


def _differs(direct: Ended, through: Ended, test: str) -> bool:
    return direct.get(test, ("missing",))[0] != through.get(test, ("missing",))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", help="the folder with the repositories")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="the Python that has the drivers")
    parser.add_argument("--only", default="", help="names of suites, or the beginning of one, with a comma between")
    parser.add_argument("--tests", nargs="*", default=[], help="tests of it, as pytest takes them")
    parser.add_argument("--mode", default="transaction", choices=("transaction", "session"))
    parser.add_argument("--pool", type=int, default=60, help="connections to the database at most")
    parser.add_argument("--scratch", default="", help="where logs and results go; kept")
    options = parser.parse_args()
    scratch = Path(options.scratch or tempfile.mkdtemp(prefix="dbsuites-")).resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    chosen = [suite for suite in SUITES if any(suite.name.startswith(each) for each in options.only.split(","))]
    missing = sorted({suite.folder for suite in chosen if not Path(options.suites, suite.folder).is_dir()})
    if missing:
        sys.exit(f"dbsuites: {options.suites} has no {', '.join(missing)}; check out their repositories there")
    unexplained = 0
    place = Place(scratch, str(options.python.absolute()), options)
    print(
        f"logs: {scratch}\n\n| Suite | Tests run | Failed direct | Otherwise through |\n| --- | --- | --- | --- |",
        flush=True,
    )
    reported: list[str] = []
    for suite in chosen:
        direct, through, differ = compare(place, suite, options.tests)
        ran = Counter(ended for ended, _ in direct.values())
        print(f"| {suite.name} | {ran['passed'] + ran['failed']:,} | {ran['failed']} | {len(differ)} |", flush=True)
        report = {"direct": direct, "through": through, "differ": differ}
        (scratch / f"{suite.slug}.json").write_text(json.dumps(report, indent=1))
        for test, said in differ.items():
            why = suite.reason(test)
            unexplained += not why
            last = said.strip().splitlines()[-1] if said.strip() else "passed"
            reported.append(f"{suite.name}: {test}: {why or 'NO REASON KNOWN'} ({last[:200]})")
    print("", *reported, sep="\n")
    sys.exit(1 if unexplained else 0)


if __name__ == "__main__":
    main()
