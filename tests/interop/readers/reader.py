"""Reads everything that a bridge has; see ../shared.py.

Usage: reader.py [asyncio] ADDRESS CASES, with the cases as a JSON list of objects: options of the channel,
and `format`, the payload format of events that are to be printed.
"""

import asyncio
import hashlib
import json
import sys
import time

import grpc
from google.protobuf import json_format

from prelude.bridge.v1 import event_service_pb2 as pb
from prelude.bridge.v1 import position_pb2
from prelude.bridge.v1.event_service_pb2_grpc import EventServiceStub

*mode, address, cases = sys.argv[1:]


class Tally:
    def __init__(self, options: dict) -> None:
        self.events, self.digest, self.began = 0, hashlib.sha256(), time.monotonic()
        self.format = options.pop("format", None)
        self.options = list(options.items())
        self.request = pb.SubscribeRequest(
            start=position_pb2.StartPosition(earliest=position_pb2.Earliest()),
            stop=position_pb2.StopPosition(head=position_pb2.Head()),
            payload_format=self.format or position_pb2.PAYLOAD_FORMAT_RAW,
        )

    def take(self, response: pb.SubscribeResponse) -> None:
        for event in response.events:
            self.events += 1
            self.digest.update(event.raw_json + b"\n")
            if self.format:
                print(json_format.MessageToJson(event, indent=None))

    def print(self) -> None:
        seconds = time.monotonic() - self.began
        result = {"events": self.events, "digest": self.digest.hexdigest(), "seconds": seconds}
        print(json.dumps({"result": result}), flush=True)


def read(options: dict) -> None:
    tally = Tally(options)
    with grpc.insecure_channel(address, tally.options) as channel:
        for response in EventServiceStub(channel).Subscribe(tally.request):
            tally.take(response)
    tally.print()


async def read_async(options: dict) -> None:
    tally = Tally(options)
    async with grpc.aio.insecure_channel(address, tally.options) as channel:
        async for response in EventServiceStub(channel).Subscribe(tally.request):
            tally.take(response)
    tally.print()


for case in json.loads(cases):
    if mode:
        asyncio.run(read_async(case))
    else:
        read(case)
