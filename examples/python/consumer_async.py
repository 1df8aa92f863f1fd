"""Prints the events of a bridge as JSON lines, each once and in order, whatever happens to the
bridge, the network or itself. For asyncio; consumer.py is the same for threads. Replace `process`
in work.py by what your service does."""

import argparse
import asyncio
import signal
import sys

import grpc
from grpc_status.rpc_status import aio as rpc_status

from connection import connect, metadata
from prelude.bridge.v1.event_service_pb2_grpc import EventServiceStub
from request import parse_arguments, subscribe_request
from retry import Backoff, exit_code, is_retryable
from store import CursorStore
from work import Worker


async def consume(channel: grpc.aio.Channel, arguments: argparse.Namespace, stopped: asyncio.Event) -> int:
    """Subscribes again and again, each time after what was processed. Gives the exit code."""
    stub = EventServiceStub(channel)
    store, backoff = CursorStore(arguments.cursor_file), Backoff()
    worker = Worker(store, backoff)
    while not stopped.is_set():
        status, reason = None, "the stream ended too early"
        call = stub.Subscribe(subscribe_request(arguments, store.cursor), metadata=metadata())
        canceller = asyncio.create_task(cancel_when(stopped, call))
        try:
            async for response in call:
                worker.take(response)
                if stopped.is_set():
                    return 0
        except grpc.aio.AioRpcError as error:
            status, reason = await rpc_status.from_call(call), error.details()
            if not is_retryable(error, status):
                return exit_code(error)
        except asyncio.CancelledError:
            if not stopped.is_set():
                raise  # Not by cancel_when: somebody else ends this task.
            return 0
        finally:
            canceller.cancel()
        try:
            await asyncio.wait_for(stopped.wait(), backoff.next_delay_s(reason, status))
        except TimeoutError:
            pass
    return 0


async def cancel_when(stopped: asyncio.Event, call: grpc.aio.Call) -> None:
    await stopped.wait()
    call.cancel()


async def main() -> int:
    arguments = parse_arguments()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with connect(grpc.aio) as channel:
        return await consume(channel, arguments, stopped)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
