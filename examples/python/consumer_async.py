"""Prints the events of a bridge as JSON lines, each once and in order, whatever happens to the
bridge, the network or itself. For asyncio; consumer.py is the same for threads."""

import asyncio
import signal
import sys

import grpc
from grpc_status.rpc_status import aio as rpc_status

import common
from prelude.bridge.v1 import event_service_pb2_grpc


async def consume(channel: grpc.aio.Channel, stopped: asyncio.Event) -> int:
    stub = event_service_pb2_grpc.EventServiceStub(channel)
    arguments = common.parse_arguments()
    progress = common.Progress(common.CursorStore(arguments.cursor_file))
    while not stopped.is_set():
        request = common.subscribe_request(arguments, progress.cursor)
        call = stub.Subscribe(request, metadata=common.metadata())
        canceller = asyncio.create_task(cancel_when(stopped, call))
        try:
            async for response in call:
                progress.take(response)
                if stopped.is_set():
                    return 0
            status, reason = None, "the stream ended too early"
        except grpc.aio.AioRpcError as error:
            if error.code() not in common.RETRYABLE:
                return common.exit_code(error)
            status, reason = await rpc_status.from_call(call), error.details()
        except asyncio.CancelledError:
            if not stopped.is_set():
                raise  # Not by cancel_when: somebody else ends this task.
            return 0
        finally:
            canceller.cancel()
        delay_s = progress.backoff.next_delay_s(status)
        common.log.info("reconnecting in %.1f s: %s", delay_s, reason)
        try:
            await asyncio.wait_for(stopped.wait(), delay_s)
        except TimeoutError:
            pass
    return 0


async def cancel_when(stopped: asyncio.Event, call: grpc.aio.Call) -> None:
    await stopped.wait()
    call.cancel()


async def main() -> int:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    credentials = common.transport_credentials()
    async with (
        grpc.aio.secure_channel(common.address(), credentials, common.OPTIONS)
        if credentials
        else grpc.aio.insecure_channel(common.address(), common.OPTIONS)
    ) as channel:
        return await consume(channel, stopped)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
