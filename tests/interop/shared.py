"""What the runs beside this file share: the readers in `readers/`, which are built on the example clients,
and a bridge that trusts the key of the tests. examples/run-interop has to have run before."""

import base64
import dataclasses
import http.client
import json
import os
import pathlib
import shutil
import subprocess
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WORK = ROOT / "target" / "interop"
KEY = ROOT / "tests" / "data" / "keys" / "test-key-2048-a.pem"
BRIDGE = ROOT / "target" / "debug" / "prelude-bridge"

CLIENT_TIMEOUT_S = 120


class Failure(Exception):
    """What a person reads at the end of a run that proved nothing."""


@dataclasses.dataclass
class Reader:
    """A client that reads everything a bridge has: ADDRESS and a JSON list of cases are its arguments.
    For each case it prints the events as JSON lines, if the case has a `format`, and a result."""

    name: str
    # Of the example that it is built on, and what shows that this was built.
    directory: str
    built: str
    # Where each file goes.
    files: dict[str, str]
    command: list[str]
    build: list[str] = dataclasses.field(default_factory=list)

    @property
    def home(self) -> pathlib.Path:
        return WORK / "tree" / "examples" / self.directory

    def prepare(self) -> None:
        for source, target in self.files.items():
            (self.home / target).parent.mkdir(exist_ok=True)
            shutil.copy(HERE / "readers" / source, self.home / target)
        if self.build and subprocess.run(self.build, cwd=self.home).returncode != 0:
            raise Failure(f"{self.name} did not build")

    def run(self, address: str, cases: list[dict]) -> list[tuple[list[str], dict]]:
        """The events and the result of each case."""
        command = [*self.command, address, json.dumps(cases)]
        try:
            ran = subprocess.run(
                command, cwd=self.home, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=CLIENT_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            raise Failure(f"{self.name} did not end within {CLIENT_TIMEOUT_S} s") from None
        ended, events = [], []
        for line in ran.stdout.decode().splitlines():
            if line.startswith('{"result":'):
                ended.append((events, json.loads(line)["result"]))
                events = []
            else:
                events.append(line)
        if ran.returncode != 0 or len(ended) != len(cases):
            raise Failure(f"{self.name} ended with {ran.returncode} after {len(ended)} of {len(cases)} cases")
        return ended


PYTHON = str(WORK / "venv" / "bin" / "python")
READERS = [
    Reader(
        "go",
        "go",
        "consumer",
        {"reader.go": "reader/main.go"},
        ["reader/reader"],
        ["go", "build", "-o", "reader/reader", "./reader"],
    ),
    Reader("python", "python", "prelude", {"reader.py": "reader.py"}, [PYTHON, "reader.py"]),
    Reader("python-asyncio", "python", "prelude", {"reader.py": "reader.py"}, [PYTHON, "reader.py", "asyncio"]),
    Reader("typescript", "typescript", "dist", {"reader.mjs": "reader.mjs"}, ["node", "reader.mjs"]),
    Reader(
        "java",
        "java",
        "target/lib",
        {"Reader.java": "Reader.java"},
        ["java", "-cp", "target/classes:target/lib/*", "Reader.java"],
    ),
    Reader(
        "browser",
        "browser",
        "dist",
        {"browser.mjs": "browser.mjs", "browser.ts": "src/reader.ts"},
        ["node", "browser.mjs"],
        ["npx", "esbuild", "src/reader.ts", "--bundle", "--outfile=dist/reader.js", "--log-level=warning"],
    ),
]


def choose(parser, readers: list[Reader], only: str | None) -> list[Reader]:
    """Those that were asked for and can be built. What has no tools here was named by run-interop."""
    names = only.split(",") if only else [reader.name for reader in readers]
    if unknown := set(names) - {reader.name for reader in readers}:
        parser.error(f"no such client: {', '.join(sorted(unknown))}")
    chosen = [reader for reader in readers if reader.name in names and (reader.home / reader.built).exists()]
    if not chosen:
        raise Failure("no example client is built: run examples/run-interop first")
    for reader in chosen:
        reader.prepare()
    return chosen


def start(binary: pathlib.Path, state: pathlib.Path, environment: dict[str, str]) -> tuple[subprocess.Popen, str, str]:
    """A bridge, its webhook address and its gRPC address."""
    process = subprocess.Popen(
        [binary, "serve", "--store", "memory", "--log-format", "json", "--data-dir", state / "data"]
        + [flag for name in ("webhook", "grpc", "admin") for flag in (f"--{name}-listen", "127.0.0.1:0")],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        ready = json.loads(line)
        if ready.get("message") == "ready":
            # Nobody reads what it says from now on, but it has to be able to say it.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return process, ready["webhook"], ready["grpc"]
    raise Failure(f"the bridge ended with {process.wait()}")


def write_jwks(path: pathlib.Path) -> pathlib.Path:
    modulus = openssl("rsa", "-in", str(KEY), "-noout", "-modulus").decode().strip().removeprefix("Modulus=")
    key = {"kty": "RSA", "kid": "interop", "alg": "PS256", "use": "sig", "e": "AQAB", "n": url_safe(bytes.fromhex(modulus))}
    path.write_text(json.dumps({"keys": [key]}))
    return path


def deliver(webhook: str, source: str, body: bytes, state: pathlib.Path) -> None:
    """Posts a body, signed."""
    (state / "body").write_bytes(body)
    padding = ["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest"]
    signature = openssl("dgst", "-sha256", "-sign", str(KEY), *padding, str(state / "body"))
    connection = http.client.HTTPConnection(webhook)
    headers = {"Content-Type": "application/json", "X-Webhook-Signature": f"rsassa-pss-sha256={url_safe(signature)}"}
    connection.request("POST", f"/webhooks/{source}", body, headers)
    answer = connection.getresponse()
    if answer.status != 200:
        raise Failure(f"a delivery was answered with {answer.status}: {answer.read().decode()}")
    connection.close()


def openssl(*arguments: str) -> bytes:
    ran = subprocess.run(["openssl", *arguments], capture_output=True)
    if ran.returncode != 0:
        raise Failure(f"openssl {arguments[0]}: {ran.stderr.decode()}")
    return ran.stdout


def url_safe(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def end(main) -> None:
    """Runs a run."""
    began = time.monotonic()
    try:
        main()
    except Failure as failure:
        raise SystemExit(f"FAILED: {failure}") from None
    print(f"took {time.monotonic() - began:.0f} s")
