"""When to try again, and how to end when there is no use in it."""

import logging
import random

import grpc
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

# Of errors that are not the bridge's own.
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


class Backoff:
    """Doubles from 200 ms to 30 s, on top of what the server asks for. The jitter keeps clients
    that lost a server together from coming back together."""

    def __init__(self) -> None:
        self.attempts = 0
        # What a draining server asks for.
        self.retry_after_s = 0.0

    def reset(self) -> None:
        """For progress only: a server that accepts and fails must not be hammered."""
        self.attempts = 0

    def next_delay_s(self, reason: str | None, status: Status | None) -> float:
        if info := find(RetryInfo, status):
            self.retry_after_s = max(self.retry_after_s, info.retry_delay.ToTimedelta().total_seconds())
        step_s = min(0.2 * 2 ** min(self.attempts, 16), 30.0)
        delay_s = self.retry_after_s + step_s * random.uniform(0.5, 1.0)
        self.attempts += 1
        self.retry_after_s = 0.0
        logging.info("reconnecting in %.1f s: %s", delay_s, reason)
        return delay_s


def is_retryable(error: grpc.RpcError, status: Status | None) -> bool:
    """Whether the same call can succeed later. Of its own errors the bridge says so, by a RetryInfo;
    those of proxies and broken connections have only a code."""
    info = find(ErrorInfo, status)
    if info and info.domain == "prelude-bridge":
        return find(RetryInfo, status) is not None
    return error.code() in RETRYABLE


def find(kind, status: Status | None):
    """The detail of this kind, or None."""
    for detail in status.details if status else ():
        if detail.Is(kind.DESCRIPTOR):
            return kind.FromString(detail.value)
    return None


def exit_code(error: grpc.RpcError) -> int:
    """Those of `prelude-bridge tail`."""
    logging.error("%s: %s", error.code().name, error.details())
    match error.code():
        case grpc.StatusCode.OUT_OF_RANGE:
            logging.error("remove the cursor file to continue with the oldest event that is left")
            return 5
        case grpc.StatusCode.DATA_LOSS:
            logging.error("ask the bridge's operator, or set on_damaged to continue without them")
            return 1
        case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED:
            logging.error("check BRIDGE_TOKEN")
            return 4
        # The request is not valid, or too large.
        case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.RESOURCE_EXHAUSTED:
            return 2
        case _:
            return 1
