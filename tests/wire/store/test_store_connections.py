"""How a store is reached: users and passwords, database numbers, TLS, poolers; and what is refused with a sentence."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import subprocess
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from free_ports import free_port
from gateway_process import eventually
from postgres_cluster import OWNER, OWNER_PASSWORD, PASSWORD, USER, Cluster
from store_servers import StoreServer, instances, new_instance, postgres_server, valkey_server
from valkey_process import server_binary

from proxy.policy.loading import PolicySource, load_policy
from proxy.store.limits import ADMIT

SECRET = "s3cr:t/p@ss %w"
QUOTED = "s3cr%3At%2Fp%40ss%20%25w"


async def reason_of(server: StoreServer, url: str) -> str:
    """Why a store cannot be used."""
    one = new_instance(server, url=url)
    await one.store.start()
    assert not one.store.is_up
    reason = await eventually(lambda: one.store.health().state == "degraded" and one.store.health().reason)
    await one.store.stop()
    reported = reason + "".join(text for _, text in one.events) + repr(one.store)
    assert SECRET not in reported
    assert QUOTED not in reported
    return reason


async def test_a_password_an_acl_user_and_a_database_number_are_the_addresss() -> None:
    rights = "~app:* &* +@all -@dangerous"  # what a careful owner gives: no INFO, no KEYS, no FLUSHALL
    with valkey_server(f'requirepass "{SECRET}"', f'user gateway on ">{SECRET}" {rights}') as server:
        port = server.server.port
        server.prefix = "app"
        for user in ("", "gateway", "default"):
            async with instances(server, 2, url=f"redis://{user}:{QUOTED}@127.0.0.1:{port}/3") as (one, two):
                await one.store.set("x", user.encode(), 60)
                assert await two.store.get("x") == user.encode()
                assert one.store.where == f"redis://{user}:***@127.0.0.1:{port}/3"
        assert "WRONGPASS" in await reason_of(server, f"redis://:wrong@127.0.0.1:{port}")
        assert "NOAUTH" in await reason_of(server, f"redis://127.0.0.1:{port}")
        assert "NOPERM" in await reason_of(
            StoreServer("", "valkey", None), f"redis://gateway:{QUOTED}@127.0.0.1:{port}"
        )
        async with instances(server, 1, url=f"redis://:{QUOTED}@127.0.0.1:{port}/4") as (other,):
            assert await other.store.get("x") is None  # another database


async def test_a_cluster_and_a_sentinel_are_refused_with_a_sentence(tmp_path: Path) -> None:
    with valkey_server("cluster-enabled yes") as server:
        reason = await reason_of(server, server.url.removesuffix("/0"))
        assert reason.endswith("it is a cluster, and only a single server can decide; name that server in store.url")
    port = free_port()
    (tmp_path / "sentinel.conf").write_text(f"port {port}\ndir {tmp_path}\n")
    sentinel = subprocess.Popen([server_binary(), tmp_path / "sentinel.conf", "--sentinel"], stdout=subprocess.DEVNULL)
    try:
        await until_open(port)
        assert "it is a Sentinel" in await reason_of(StoreServer("", "valkey", None), f"redis://127.0.0.1:{port}")
    finally:
        sentinel.kill()
        sentinel.wait()


async def test_what_is_no_store_is_told_of(unused_tcp_port: int) -> None:
    server = StoreServer("", "valkey", None)
    assert "cannot be reached" in await reason_of(server, f"redis://:{QUOTED}@127.0.0.1:{unused_tcp_port}")
    assert "cannot be" in await reason_of(server, f"postgresql://u:{QUOTED}@127.0.0.1:{unused_tcp_port}/d")

    async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    web = await asyncio.start_server(page, "127.0.0.1", 0)
    reason = await reason_of(server, f"redis://127.0.0.1:{web.sockets[0].getsockname()[1]}")
    assert "does not speak the protocol" in reason
    web.close()


async def test_tls_is_checked_unless_the_address_says_otherwise(tmp_path: Path) -> None:
    with valkey_server() as server:
        async with tls_in_front(server.server.port, tmp_path) as port:
            assert "certificate" in await reason_of(server, f"rediss://localhost:{port}")
            for options in (f"ssl_ca_certs={tmp_path}/ca.pem", "ssl_cert_reqs=none"):
                async with instances(server, 1, url=f"rediss://localhost:{port}/0?{options}") as (one,):
                    await one.store.set("x", b"1" * 100_000, 60)
                    assert await one.store.get("x") == b"1" * 100_000


async def test_several_start_at_once_on_an_empty_database(cluster: Cluster) -> None:
    with postgres_server(cluster) as server:
        made = [new_instance(server) for _ in range(5)]
        await asyncio.gather(*(one.store.start() for one in made))
        await eventually(lambda: all(one.store.is_up for one in made), timeout=20)
        await eventually(lambda: all(one.store.instances == 5 for one in made), timeout=20)
        with cluster.control() as control:
            rows = control.execute(
                "select count(*) from pg_stat_activity where application_name = 'outrigger-store' and datname = %s",
                [server.url.rpartition("/")[2]],
            ).fetchone()
        assert rows == (5,)  # one connection an instance
        for one in made:
            await one.store.stop()


async def test_a_user_who_may_not_make_a_schema_is_told_what_to_do_and_may_use_one_that_is_there(
    cluster: Cluster,
) -> None:
    with postgres_server(cluster) as server:
        name = server.url.rpartition("/")[2]
        with cluster.control() as control:
            control.execute(f"alter database {name} owner to {OWNER}")
            control.execute(f"revoke create on database {name} from {USER}, public")
        reason = await reason_of(server, server.url)
        assert "permission denied" in reason
        assert "make the schema that store.prefix names and give it to this user" in reason
        with psycopg.connect(
            host="127.0.0.1", port=cluster.port, user=OWNER, password=OWNER_PASSWORD, dbname=name, autocommit=True
        ) as owner:
            owner.execute(f'create schema "{server.prefix}" authorization {USER}')
        async with instances(server, 1) as (one,):
            assert one.store.is_up


async def test_a_schema_may_have_any_name_that_the_policy_takes(cluster: Cluster) -> None:
    with postgres_server(cluster) as server:
        server.prefix = "My-App.2"
        async with instances(server, 2) as (one, two):
            await one.store.set("x", b"1", 60)
            assert await two.store.get("x") == b"1"


@pytest.mark.skipif(shutil.which("pgbouncer", path="/usr/sbin:" + os.environ["PATH"]) is None, reason="needs PgBouncer")
async def test_a_transaction_pooler_may_be_in_between(cluster: Cluster, tmp_path: Path) -> None:
    """Fewer server connections than instances: each statement may go to another one."""
    found = shutil.which("pgbouncer", path="/usr/sbin:" + os.environ["PATH"])
    with postgres_server(cluster) as server:
        port, name = free_port(), server.url.rpartition("/")[2]
        home = Path("/var/tmp") / f"outrigger-pgbouncer-{port}"
        home.mkdir(mode=0o777)
        (home / "users.txt").write_text(f'"{USER}" "{PASSWORD}"\n')
        (home / "pgbouncer.ini").write_text(
            f"[databases]\n{name} = host=127.0.0.1 port={cluster.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {port}\nauth_type = scram-sha-256\nauth_file = {home}/users.txt\npool_mode = transaction\n"
            f"default_pool_size = 2\nlogfile = {home}/log\n"
        )
        as_nobody = ["-u", "nobody"] if os.geteuid() == 0 else []
        home.chmod(0o777)
        assert found is not None
        bouncer = subprocess.Popen([found, "-q", *as_nobody, home / "pgbouncer.ini"], stderr=subprocess.DEVNULL)
        try:
            await until_open(port)
            async with instances(server, 4, url=cluster.url(name, port=port)) as made:
                await eventually(lambda: all(one.store.instances == 4 for one in made))
                heard: list[object] = []
                made[3].store.subscribe("block", heard.append)
                args = ["1", "30", "60000000"]
                found_ids = await asyncio.gather(
                    *(made[at % 4].store.execute(ADMIT, ("limit:x",), (f"{at}", *args)) for at in range(200))
                )
                assert sum(reply[1] == 0 for reply in found_ids) == 30
                made[0].store.publish("block", {"user": "u"})
                await eventually(lambda: heard == [{"user": "u"}])
                await made[1].store.set("x", b"\0\xff" * 1000, 60)
                assert await made[2].store.get("x") == b"\0\xff" * 1000
        finally:
            bouncer.kill()
            bouncer.wait()
            shutil.rmtree(home)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("redis+sentinel://a/0", "it asks for Sentinel or Cluster"),
        ("redis://a:1,b:2/0", "it names several servers"),
        ("redis://a/one", "its database is no number"),
        ("redis://", "it has no host"),
        ("memcached://a", "neither memory:// nor the address of Valkey, Redis or PostgreSQL"),
        ("postgresql://a:b:c/d?sslmode=x", "its"),
    ],
)
def test_an_address_that_cannot_be_a_store_is_a_fault_of_the_policy(url: str, problem: str) -> None:
    with pytest.raises(Exception, match="store.url") as caught:
        load_policy(PolicySource("p.yaml", None, f"store: {{url: '{url}'}}"), {})
    assert problem in str(caught.value)


async def until_open(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        except OSError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)


@asynccontextmanager
async def tls_in_front(target: int, folder: Path):
    """What ends TLS in front of a server that speaks none: the wheel's has none."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "both.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "both.pem")
    tasks: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except (OSError, ssl.SSLError):
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        back, forth = await asyncio.open_connection("127.0.0.1", target)
        writers.extend((writer, forth))
        await asyncio.gather(pump(reader, forth), pump(back, writer))

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        for writer in writers:
            writer.transport.abort()  # a TLS connection that is merely closed waits for the other side's end
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.05)
