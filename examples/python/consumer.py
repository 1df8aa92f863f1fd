"""Prints the events of a bridge as JSON lines, each once and in order, whatever happens to the
bridge, the network or itself. For threads; consumer_async.py is the same for asyncio. Replace
`process` in work.py by what your service does."""

import argparse
import signal
import sys
import threading

import grpc
from grpc_status import rpc_status

from connection import connect, metadata
from prelude.bridge.v1.event_service_pb2_grpc import EventServiceStub
from request import parse_arguments, subscribe_request
from retry import Backoff, exit_code, is_retryable
from store import CursorStore
from work import Worker


class Consumer:
    def __init__(self, channel: grpc.Channel, arguments: argparse.Namespace) -> None:
        self.stub = EventServiceStub(channel)
        self.arguments = arguments
        self.store = CursorStore(arguments.cursor_file)
        self.backoff = Backoff()
        self.worker = Worker(self.store, self.backoff)
        self.stopped = threading.Event()
        self.call: grpc.Call | None = None

    def stop(self, *_: object) -> None:
        """Ends after the response that is being processed."""
        self.stopped.set()
        if self.call:
            self.call.cancel()

    def run(self) -> int:
        """Subscribes again and again, each time after what was processed. Gives the exit code."""
        while not self.stopped.is_set():
            status, reason = None, "the stream ended too early"
            try:
                self.subscribe()
            except grpc.RpcError as error:
                status, reason = rpc_status.from_call(error), error.details()
                if not is_retryable(error, status):
                    return exit_code(error)
            if not self.stopped.is_set():
                self.stopped.wait(self.backoff.next_delay_s(reason, status))
        return 0

    def subscribe(self) -> None:
        """Consumes one stream to its end."""
        request = subscribe_request(self.arguments, self.store.cursor)
        self.call = self.stub.Subscribe(request, metadata=metadata())
        for response in self.call:
            self.worker.take(response)
            if self.stopped.is_set():
                return


def main() -> int:
    arguments = parse_arguments()
    with connect() as channel:
        consumer = Consumer(channel, arguments)
        signal.signal(signal.SIGTERM, consumer.stop)
        signal.signal(signal.SIGINT, consumer.stop)
        return consumer.run()


if __name__ == "__main__":
    sys.exit(main())
