"""When to try again, and how to end when there is no use in it."""

import logging
import random

import grpc
from google.rpc import error_details_pb2

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

    def next_delay_s(self, reason: str | None, status=None) -> float:
        for detail in status.details if status else ():
            info = error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                asked_s = info.retry_delay.ToTimedelta().total_seconds()
                self.retry_after_s = max(self.retry_after_s, asked_s)
        step_s = min(0.2 * 2 ** min(self.attempts, 16), 30.0)
        delay_s = self.retry_after_s + step_s * random.uniform(0.5, 1.0)
        self.attempts += 1
        self.retry_after_s = 0.0
        logging.info("reconnecting in %.1f s: %s", delay_s, reason)
        return delay_s


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
        case grpc.StatusCode.INVALID_ARGUMENT:
            return 2
        case _:
            return 1
