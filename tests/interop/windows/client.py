"""Reads everything that a bridge has, with options of the channel; see `run` beside it.

Usage: windows.py [asyncio] ADDRESS OPTIONS, with the options as a JSON list of objects.
"""

import asyncio
import hashlib
import json
import sys
import time

import grpc

from prelude.bridge.v1 import event_service_pb2 as pb
from prelude.bridge.v1 import position_pb2
from prelude.bridge.v1.event_service_pb2_grpc import EventServiceStub

*mode, address, cases = sys.argv[1:]
REQUEST = pb.SubscribeRequest(
    start=position_pb2.StartPosition(earliest=position_pb2.Earliest()),
    stop=position_pb2.StopPosition(head=position_pb2.Head()),
    payload_format=position_pb2.PAYLOAD_FORMAT_RAW,
)


class Tally:
    def __init__(self) -> None:
        self.events, self.digest, self.began = 0, hashlib.sha256(), time.monotonic()

    def take(self, response: pb.SubscribeResponse) -> None:
        for event in response.events:
            self.events += 1
            self.digest.update(event.raw_json + b"\n")

    def print(self) -> None:
        seconds = time.monotonic() - self.began
        result = {"events": self.events, "digest": self.digest.hexdigest(), "seconds": seconds}
        print(json.dumps(result), flush=True)


def read(options: dict) -> None:
    tally = Tally()
    with grpc.insecure_channel(address, list(options.items())) as channel:
        for response in EventServiceStub(channel).Subscribe(REQUEST):
            tally.take(response)
    tally.print()


async def read_async(options: dict) -> None:
    tally = Tally()
    async with grpc.aio.insecure_channel(address, list(options.items())) as channel:
        async for response in EventServiceStub(channel).Subscribe(REQUEST):
            tally.take(response)
    tally.print()


for case in json.loads(cases):
    if mode:
        asyncio.run(read_async(case))
    else:
        read(case)
