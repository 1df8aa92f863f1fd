"""Prints the events of a bridge as JSON lines, each once and in order, whatever happens to the
bridge, the network or itself. For threads; consumer_async.py is the same for asyncio."""

import signal
import sys
import threading

import grpc
from grpc_status import rpc_status

import common
from prelude.bridge.v1 import event_service_pb2_grpc


class Consumer:
    def __init__(self, channel: grpc.Channel) -> None:
        self.stub = event_service_pb2_grpc.EventServiceStub(channel)
        self.arguments = common.parse_arguments()
        self.progress = common.Progress(common.CursorStore(self.arguments.cursor_file))
        self.stopped = threading.Event()
        self.call: grpc.Call | None = None

    def stop(self, *_: object) -> None:
        """Ends after the response that is being processed."""
        self.stopped.set()
        if self.call:
            self.call.cancel()

    def run(self) -> int:
        while not self.stopped.is_set():
            request = common.subscribe_request(self.arguments, self.progress.cursor)
            try:
                self.call = self.stub.Subscribe(request, metadata=common.metadata())
                for response in self.call:
                    self.progress.take(response)
                    if self.stopped.is_set():
                        return 0
                status, reason = None, "the stream ended too early"
            except grpc.RpcError as error:
                if self.stopped.is_set():
                    return 0
                if error.code() not in common.RETRYABLE:
                    return common.exit_code(error)
                status, reason = rpc_status.from_call(error), error.details()
            delay_s = self.progress.backoff.next_delay_s(status)
            common.log.info("reconnecting in %.1f s: %s", delay_s, reason)
            self.stopped.wait(delay_s)
        return 0


def main() -> int:
    credentials = common.transport_credentials()
    with (
        grpc.secure_channel(common.address(), credentials, common.OPTIONS)
        if credentials
        else grpc.insecure_channel(common.address(), common.OPTIONS)
    ) as channel:
        consumer = Consumer(channel)
        signal.signal(signal.SIGTERM, consumer.stop)
        signal.signal(signal.SIGINT, consumer.stop)
        return consumer.run()


if __name__ == "__main__":
    sys.exit(main())
