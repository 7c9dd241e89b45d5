"""`make realapps`: apps that nobody here wrote, beside themselves behind the gateway, under the policy that `init` writes.

ONLY='streamlit flask': those; APPS=DIR: any folder of your own instead. Each app has an environment of its own under
.realapps/, and a copy of its folder there. What was seen is a table in docs/realapps.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import drive
import visits
from catalogue import APPS, RealApp
from installed import INSTALLS, gateway, install, versions
from page import write
from seen import WORSE, Seen, Verdict, judge
from started import BEHIND, DIRECT, Started, environment, free_port, start
from vendor import Vendor

ROOT = Path(__file__).parents[2]
PLACE = ROOT / ".realapps"


def main(names: list[str], folder: str) -> int:
    if folder:
        path = Path(folder).resolve()
        apps = [RealApp(re.sub(r"\W", "_", path.name), path)]
    else:
        known = [one.name for one in APPS]
        if unknown := [name for name in names if name not in known]:
            print(f"no app here is named {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
            return 2
        apps = [one for one in APPS if not names or one.name in names]
    worse = 0
    program = gateway(ROOT, PLACE)
    for app in apps:
        begun = time.monotonic()
        print(f"{app.name} …", flush=True)
        try:
            rows = asyncio.run(asyncio.wait_for(compare(app, program), 600))
        except (RuntimeError, TimeoutError, subprocess.SubprocessError, OSError) as error:
            print(f"  not run: {error!s:.3000}", file=sys.stderr)
            worse += 1
            continue
        print(f"  ({time.monotonic() - begun:.0f} s)", flush=True)
        worse += any(one["word"] == WORSE for one in rows["verdicts"].values())
        (PLACE / app.name / "seen.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False))
        if not folder:
            write(ROOT / "docs" / "realapps.md", PLACE, [one.name for one in APPS])
    return 1 if worse else 0


class Verdicts(dict[str, Verdict]):
    """Each said as it is known: a run takes minutes."""

    def __setitem__(self, name: str, verdict: Verdict) -> None:
        print(f"  {name}: {verdict.word}; {verdict.said}", flush=True)
        super().__setitem__(name, verdict)


async def compare(app: RealApp, program: Path) -> dict:
    place = PLACE / app.name
    environ = install(app.folder, place)
    line, warned = init(place / "app", program)
    print(f"  start command: {line}", flush=True)
    vendor = Vendor()
    runner = await vendor.start()
    ways: list[Started] = []
    verdicts = Verdicts()
    try:
        for way in (DIRECT, BEHIND):
            shutil.rmtree(place / f"home-{way}", ignore_errors=True)  # what it remembers of a run before
            env = environment(place / f"home-{way}", environ, vendor.url)
            ways.append(await start(way, bare(line) if way == DIRECT else line.replace("OUTRIGGER", str(program), 1), place / "app", env, place / f"{way}.log"))  # fmt: skip
        ups = [await one.ready(app.health) for one in ways]
        print(f"  up after {ups[0]:.1f} and {ups[1]:.1f} s", flush=True)
        polls = [[asyncio.ensure_future(drive.long_poll(one, app.poll))] if app.poll else [] for one in ways]
        both = [await drive.pages(one, app.paths) for one in ways]
        verdicts["pages"] = judge(*both)
        if visits.found():
            async with visits.browser() as chromium:
                both = [await visits.visit(chromium, one, app.start, app.act) for one in ways]
            verdicts["Chromium"] = judge(*both)
        verdicts["50 users"] = judge(*await drive.many(ways, app.load))
        if app.ask:
            both = []
            for one in ways:
                vendor.misbehave(50)
                both.append(await drive.faults(one, app.ask))
            vendor.misbehave(0)
            verdicts["a vendor that fails"] = judge(*both)
        both = [
            drive.merge(*await asyncio.gather(*(check(one) for check in app.checks)), *await asyncio.gather(*long))
            for one, long in zip(ways, polls)
        ]
        if app.checks or app.poll:
            verdicts["streams, sockets, uploads, long polls"] = judge(*both)
        refusals = drive.refused(ways[1])
        if refusals:
            verdicts["refused before that"] = Verdict(WORSE, refusals)
        for name, ended in (await ends(app, ways, line, program, environ, vendor)).items():
            verdicts[name] = ended
    finally:
        for one in ways:
            if one.process.returncode is None:
                await one.stop()
        await runner.cleanup()
    return {
        "versions": versions(app.folder, place), "line": line, "warned": warned,
        "verdicts": {name: asdict(one) for name, one in verdicts.items()},
    }  # fmt: skip


async def ends(
    app: RealApp, ways: list[Started], line: str, program: Path, environ: Path | None, vendor: Vendor
) -> dict:
    """Kills and stops. An app alone that is gone stays gone until its platform starts it: here we do."""
    verdicts: dict[str, Verdict] = {}
    for name, victim in (("kill -9 of the app", Started.app), ("kill -9 of its child", Started.child)):
        both: list[Seen] = []
        for number, one in enumerate(ways):
            process = victim(one)
            if process is None:
                break
            both.append(await drive.killed(one, app.load[0], process.pid, back_by=30 if one.way == BEHIND else 8))
            if one.process.returncode is not None or "never back" in both[-1].said:
                await one.stop()
                ways[number] = await again(one, app, line, program, environ, vendor)
        if len(both) == 2:
            verdicts[name] = judge(*both)
    verdicts["SIGTERM while busy"] = judge(*[await drive.stopped(one, app.busy) for one in ways])
    return verdicts


async def again(one: Started, app: RealApp, line: str, program: Path, environ: Path | None, vendor: Vendor) -> Started:
    place = PLACE / app.name
    env = environment(place / f"home-{one.way}", environ, vendor.url)
    command = bare(line) if one.way == DIRECT else line.replace("OUTRIGGER", str(program), 1)
    fresh = await start(one.way, command, place / "app", env, place / f"{one.way}-2.log")
    await fresh.ready(app.health)
    return fresh


def init(folder: Path, program: Path) -> tuple[str, str]:
    """The start command that `init` prints, OUTRIGGER in the program's place, and what it noted. The policy stays as
    written but for the addresses of two listeners, which another gateway on this machine may have."""
    (folder / "outrigger.yaml").unlink(missing_ok=True)
    done = subprocess.run([program, "init", "."], cwd=folder, capture_output=True, text=True, timeout=60)
    (folder.parent / "init.txt").write_text(done.stdout + done.stderr)
    if done.returncode:
        raise RuntimeError(f"init: {done.stderr or done.stdout}")
    made = folder / "outrigger.yaml"
    text = made.read_text()
    addresses = f"  admin: 127.0.0.1:{free_port()}\n  egress: 127.0.0.1:{free_port()}\n"
    made.write_text(
        re.sub(r"^listen:\n", f"listen:\n{addresses}", text, count=1, flags=re.M)
        if re.search(r"^listen:\n", text, re.M) else f"{text}listen:\n{addresses}"
    )  # fmt: skip
    line = done.stdout.partition("Start command:\n\n    ")[2].partition("\n")[0]
    if not line or "COMMAND" in line:
        raise RuntimeError(f"init found no start command; what it said:\n{done.stdout}")
    return re.sub(r"\S*/bin/outrigger", "OUTRIGGER", line, count=1), done.stdout.partition("\nNote:")[2].strip()


def bare(line: str) -> str:
    """What stands behind `--`, as a platform's shell runs it."""
    command = line.partition(" -- ")[2]
    words = shlex.split(command)
    return words[0].strip() if len(words) == 1 else command


if __name__ == "__main__":
    if not shutil.which("python3"):
        sys.exit("python3 is needed")
    PLACE.mkdir(exist_ok=True)
    only = os.environ.get("ONLY", "").split()
    assert INSTALLS
    sys.exit(main(only, os.environ.get("APPS", "")))
