"""Whom the gateway is set beside, each as its users run it in production: on one core, connections kept alive on both
sides, with an access log.

One function a peer; each gives a running `Peer`, or None with a sentence that says why. `make bench` sets up those
that Debian has not (peers.sh). A `limited` one counts every request against its own rate limit, which is set too high
to be met: nginx, HAProxy and Traefik by the client's address, Envoy in one bucket. Caddy has none built in.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from bench_tools import PATH, ROOT, Bench, Peer, free_port

WHEELS = ROOT / ".venv-peers" / "bin"
PORTKEY = ROOT / ".venv-peers-node" / "node_modules" / "@portkey-ai" / "gateway"
LITELLM = ROOT / ".venv-litellm" / "bin" / "litellm"
ONE_CORE = {"GOMAXPROCS": "1"}  # of Go's programs
ASKS_VERSION = {"nginx": "-v", "haproxy": "-v", "caddy": "version", "traefik": "version"}

NGINX = """
worker_processes 1; daemon off; pid {tmp}/nginx.pid; error_log /dev/null;
events {{ worker_connections 1024; }}
http {{
  access_log {tmp}/nginx.access; keepalive_requests 1000000000; client_max_body_size 0; client_body_temp_path {tmp}; proxy_temp_path {tmp};
  fastcgi_temp_path {tmp}; uwsgi_temp_path {tmp}; scgi_temp_path {tmp};
  proxy_request_buffering off; proxy_max_temp_file_size 0;
  upstream app {{ server 127.0.0.1:{to}; keepalive 64; keepalive_requests 1000000000; }}
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  limit_req_zone $binary_remote_addr zone=clients:10m rate=1000000r/s;
  server {{
    listen 127.0.0.1:{port};
    {limit}
    location / {{ proxy_pass http://app; proxy_http_version 1.1;
      proxy_set_header Connection $connection_upgrade; proxy_set_header Upgrade $http_upgrade; }}
  }}
}}
"""
NGINX_LIMIT = "limit_req zone=clients burst=1000000 nodelay;"

HAPROXY = """
global
  nbthread 1
  log stdout format raw local0
defaults
  mode http
  log global
  option httplog
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  timeout tunnel 60s
frontend f
  bind 127.0.0.1:{port}
  {limit}
  default_backend b
backend b
  http-reuse always
  server app 127.0.0.1:{to}
backend clients
  stick-table type ip size 100k expire 30s store http_req_rate(10s)
"""
HAPROXY_LIMIT = """http-request track-sc0 src table clients
  http-request deny deny_status 429 if { sc_http_req_rate(0) gt 10000000 }"""

ENVOY = """
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          access_log:
          - name: file
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: {tmp}/envoy-{port}.access}}
          route_config:
            virtual_hosts: [{{name: all, domains: ["*"], routes: [{{match: {{prefix: "/"}}, route: {{cluster: app, timeout: 600s}}}}]}}]
          http_filters:{limit}
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: app
    connect_timeout: 5s
    load_assignment:
      cluster_name: app
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {to}}}}}}}}}]}}]
"""
ENVOY_LIMIT = """
          - name: envoy.filters.http.local_ratelimit
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
              stat_prefix: bench
              token_bucket: {max_tokens: 1000000, tokens_per_fill: 1000000, fill_interval: 1s}
              filter_enabled: {default_value: {numerator: 100, denominator: HUNDRED}}
              filter_enforced: {default_value: {numerator: 100, denominator: HUNDRED}}"""

CADDY = """{{
  admin off
  auto_https off
  persist_config off
}}
http://127.0.0.1:{port} {{
  bind 127.0.0.1
  log {{
    output file {tmp}/caddy.access
  }}
  reverse_proxy 127.0.0.1:{to}
}}
"""

TRAEFIK = """
global: {{checkNewVersion: false, sendAnonymousUsage: false}}
entryPoints: {{web: {{address: "127.0.0.1:{port}"}}}}
accessLog: {{filePath: {tmp}/traefik.access}}
providers: {{file: {{filename: {routes}}}}}
"""
TRAEFIK_ROUTES = """
http:
  routers: {{all: {{rule: "PathPrefix(`/`)", service: app, entryPoints: [web]{used}}}}}
  services: {{app: {{loadBalancer: {{servers: [{{url: "http://127.0.0.1:{to}"}}]}}}}}}
"""
TRAEFIK_LIMIT = "  middlewares: {limit: {rateLimit: {average: 1000000, burst: 1000000}}}\n"

# What Portkey's gateway asks every call for: whom it is meant for.
PORTKEY_FIELDS = "x-portkey-provider: openai\r\nx-portkey-custom-host: http://127.0.0.1:{vendor}/v1\r\n"
# Without the first it looks for prices on the web, without the second it refuses to start without a master key.
LITELLM_SETTINGS = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "true",
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
}


def nginx(bench: Bench, *, limited: bool = False) -> Peer | None:
    """One worker."""
    return configured(bench, ["nginx", "-c"], NGINX, limit=NGINX_LIMIT if limited else "")


def haproxy(bench: Bench, *, limited: bool = False) -> Peer | None:
    """One thread."""
    return configured(bench, ["haproxy", "-q", "-f"], HAPROXY, limit=HAPROXY_LIMIT if limited else "")


def envoy(bench: Bench, *, to: int = 0, limited: bool = False) -> Peer | None:
    """One worker thread, before the bench's app or before port `to`."""
    command = ["envoy", "--concurrency", "1", "--disable-hot-restart", "-l", "off", "-c"]
    return configured(bench, command, ENVOY, to=to, limit=ENVOY_LIMIT if limited else "")


def caddy(bench: Bench) -> Peer | None:
    return configured(bench, ["caddy", "run", "--adapter", "caddyfile", "--config"], CADDY)


def traefik(bench: Bench, *, limited: bool = False) -> Peer | None:
    routes = Path(bench.tmp) / f"traefik-routes-{free_port()}.yaml"
    text = TRAEFIK_ROUTES.format(to=bench.app_port, used=", middlewares: [limit]" if limited else "")
    routes.write_text(text + (TRAEFIK_LIMIT if limited else ""))
    return configured(bench, ["traefik", "--configFile"], TRAEFIK, routes=str(routes))


def portkey(bench: Bench) -> Peer | None:
    """Portkey's gateway without its console, which keeps every call in memory. It takes PORTKEY_FIELDS."""
    node = shutil.which("node", path=PATH)
    script = PORTKEY / "build" / "start-server.js"
    if node is None or not script.exists():
        return missing("Portkey's gateway")
    port = free_port()
    hosts = {"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"}
    command = [node, str(script), "--headless", f"--port={port}"]
    peer = bench.spawn("Portkey's gateway", port, command, environ=hosts)
    peer.version = version_in((PORTKEY / "package.json").read_text())
    return peer


def litellm(bench: Bench, vendor: int, *, redis: int = 0) -> Peer | None:
    """One worker, in production mode, as on half a core. `redis`: the port of one where it counts a limit on the
    model, as several of it do together."""
    if not LITELLM.exists():
        return missing("LiteLLM's proxy")
    port = free_port()
    config = Path(bench.tmp) / f"litellm-{port}.yaml"
    limit = ", rpm: 100000000" if redis else ""
    config.write_text(
        "model_list: [{model_name: gpt-4o-mini, litellm_params: {model: openai/gpt-4o-mini, api_key: sk-x, "
        f'api_base: "http://127.0.0.1:{vendor}/v1"{limit}}}}}]\n'
        + (f"router_settings: {{redis_host: 127.0.0.1, redis_port: {redis}}}\n" if redis else "")
    )
    command = [str(LITELLM), "--config", str(config), "--port", str(port), "--host", "127.0.0.1", "--num_workers", "1"]
    peer = bench.spawn("LiteLLM's proxy", port, command, patience=180.0, environ=LITELLM_SETTINGS)
    packages = LITELLM.parent.parent.glob("lib/python*/site-packages/litellm-*.dist-info")
    peer.version = version_in(next(packages).name)
    return peer


def configured(bench: Bench, command: list[str], config: str, *, to: int = 0, **more: str) -> Peer | None:
    """The program on a free port, with `config` in the file that its last option asks for."""
    program, *options = command
    found = find(program)
    if found is None:
        return missing(program)
    port = free_port()
    file = Path(bench.tmp) / f"{program}-{port}.yaml"
    file.write_text(config.format(port=port, to=to or bench.app_port, tmp=bench.tmp, **more))
    peer = bench.spawn(program, port, [found, *options, str(file)], environ=ONE_CORE | homes(bench))
    asked = subprocess.run([found, ASKS_VERSION.get(program, "--version")], capture_output=True, text=True)
    peer.version = version_in(asked.stdout + asked.stderr)
    return peer


def homes(bench: Bench) -> dict[str, str]:
    """Where Caddy keeps what nobody here needs."""
    return dict.fromkeys(("XDG_CONFIG_HOME", "XDG_DATA_HOME"), bench.tmp)


def find(program: str) -> str | None:
    return shutil.which(program, path=f"{WHEELS}:{PATH}")


def missing(name: str) -> None:
    """A sentence, and nobody."""
    print(f"{name} is not here (see tests/bench/peers.sh) and is not compared")


def version_in(text: str) -> str:
    found = re.search(r"\d+\.\d+\.\d+", text)
    return found[0] if found else ""
