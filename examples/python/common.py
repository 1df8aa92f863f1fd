"""What the two consumers share: flags, credentials, the cursor's file, and when to try again."""

import argparse
import collections
import logging
import os
import pathlib
import random
import sys

import grpc
from google.protobuf import json_format
from google.rpc import error_details_pb2

from prelude.bridge.v1 import event_pb2, event_service_pb2, position_pb2

# Exit codes, those of `prelude-bridge tail`.
EXIT_FAILED, EXIT_USAGE, EXIT_REFUSED, EXIT_CURSOR_EXPIRED = 1, 2, 4, 5

OPTIONS = [
    # Notices a server that is gone without a word, and keeps proxies from closing idle streams.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 16 << 20),
    # gRPC's own backoff, up to two minutes, would come on top of ours.
    ("grpc.max_reconnect_backoff_ms", 1_000),
]

RETRYABLE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    # Broken connections have many codes.
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}

log = logging.getLogger("consumer")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Prints the events of a bridge as JSON lines.")
    parser.add_argument("--type", action="append", help="type or pattern, such as user.session.*")
    parser.add_argument("--exclude-type", action="append", help="type or pattern to leave out")
    parser.add_argument("--app", action="append", help="app id")
    parser.add_argument("--user", action="append", help="user id")
    parser.add_argument("--cursor-file", type=pathlib.Path, default="consumer.cursor")
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, stream=sys.stderr)
    return parser.parse_args()


def address() -> str:
    return os.environ.get("BRIDGE_ADDRESS") or "127.0.0.1:50051"


def transport_credentials() -> grpc.ChannelCredentials | None:
    """TLS if BRIDGE_CA names a file of CA certificates, or is "system"."""
    ca = os.environ.get("BRIDGE_CA")
    if not ca:
        return None
    return grpc.ssl_channel_credentials(None if ca == "system" else pathlib.Path(ca).read_bytes())


def metadata() -> list[tuple[str, str]]:
    token = os.environ.get("BRIDGE_TOKEN")
    return [("authorization", f"Bearer {token}")] if token else []


def subscribe_request(arguments: argparse.Namespace, cursor: str) -> event_service_pb2.SubscribeRequest:
    start = (
        position_pb2.StartPosition(after_cursor=cursor)
        if cursor
        else position_pb2.StartPosition(earliest=position_pb2.Earliest())
    )
    return event_service_pb2.SubscribeRequest(
        filter=position_pb2.Filter(
            types=arguments.type,
            exclude_types=arguments.exclude_type,
            app_ids=arguments.app,
            user_ids=arguments.user,
        ),
        start=start,
        client_name="example-python",
    )


def process(event: event_pb2.Event) -> None:
    """Where a service does its work. An exception ends the program before the cursor is stored."""
    print(json_format.MessageToJson(event, indent=None), flush=True)


class CursorStore:
    """A file with the place in the log. A service with a database stores the cursor there, in the
    transaction of its work: then nothing is ever processed twice."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def load(self) -> str:
        return self.path.read_text().strip() if self.path.exists() else ""

    def save(self, cursor: str) -> None:
        """Replaces the file as a whole: a crash leaves the old cursor or the new one."""
        beside = self.path.with_name(self.path.name + ".new")
        with beside.open("w") as file:
            file.write(cursor + "\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)


class Recent:
    """The newest keys, up to a limit."""

    def __init__(self, limit: int = 10_000) -> None:
        self.limit = limit
        self.keys: collections.OrderedDict[tuple[str, str], None] = collections.OrderedDict()

    def add(self, key: tuple[str, str]) -> bool:
        """Whether the key is new."""
        if key in self.keys:
            return False
        self.keys[key] = None
        if len(self.keys) > self.limit:
            self.keys.popitem(last=False)
        return True


class Progress:
    """How far a consumer is: processes responses, then stores their cursor."""

    def __init__(self, store: CursorStore) -> None:
        self.store = store
        self.cursor = store.load()
        self.seen = Recent()
        self.backoff = Backoff()

    def take(self, response: event_service_pb2.SubscribeResponse) -> None:
        for event in response.events:
            if self.seen.add((event.app_id, event.id)):
                process(event)
        # Only now: a crash before this line repeats events, a crash after it loses none.
        if response.cursor != self.cursor:
            self.store.save(response.cursor)
            self.cursor = response.cursor
        notice = response.WhichOneof("notice")
        if notice == "draining":
            self.backoff.retry_after_s = response.draining.retry_after.ToTimedelta().total_seconds()
            log.info("the server is shutting down")
        elif notice == "skipped":
            log.warning("lost to retention: %s", response.skipped)
        elif notice == "caught_up":
            log.info("caught up")
        if response.events or notice == "progress":
            self.backoff.attempts = 0


class Backoff:
    """Doubles from 200 ms to 30 s, on top of what the server asks for. The jitter keeps clients
    that lost a server together from coming back together. Only progress resets it: a server that
    accepts and fails must not be hammered."""

    def __init__(self) -> None:
        self.attempts = 0
        self.retry_after_s = 0.0

    def next_delay_s(self, status) -> float:
        for detail in status.details if status else ():
            info = error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                asked_s = info.retry_delay.ToTimedelta().total_seconds()
                self.retry_after_s = max(self.retry_after_s, asked_s)
        step_s = min(0.2 * 2 ** min(self.attempts, 16), 30.0)
        delay_s = self.retry_after_s + step_s * random.uniform(0.5, 1.0)
        self.attempts += 1
        self.retry_after_s = 0.0
        return delay_s


def exit_code(error: grpc.RpcError) -> int:
    log.error("%s: %s", error.code().name, error.details())
    match error.code():
        case grpc.StatusCode.OUT_OF_RANGE:
            log.error("remove the cursor file to continue with the oldest event that is left")
            return EXIT_CURSOR_EXPIRED
        case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED:
            log.error("check BRIDGE_TOKEN")
            return EXIT_REFUSED
        case grpc.StatusCode.INVALID_ARGUMENT:
            return EXIT_USAGE
        case _:
            return EXIT_FAILED
