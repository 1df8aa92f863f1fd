"""What is done with each response. Replace `process` by what your service does."""

import logging

from google.protobuf import json_format

from prelude.bridge.v1 import event_pb2, event_service_pb2
from retry import Backoff
from store import CursorStore, Recent


class Worker:
    def __init__(self, store: CursorStore, backoff: Backoff) -> None:
        self.store = store
        self.backoff = backoff
        self.seen = Recent(10_000)

    def take(self, response: event_service_pb2.SubscribeResponse) -> None:
        """Processes a response, and only then stores its cursor: a crash in between repeats events,
        and never loses one."""
        for event in response.events:
            if self.seen.add((event.app_id, event.type, event.id)):
                process(event)
        self.store.save(response.cursor)
        notice = response.WhichOneof("notice")
        if notice == "draining":
            self.backoff.retry_after_s = response.draining.retry_after.ToTimedelta().total_seconds()
        elif notice == "skipped":
            logging.warning("events were skipped: %s", response.skipped)
        # A draining stream worked: its end is planned.
        if response.events or notice in ("progress", "draining"):
            self.backoff.reset()


def process(event: event_pb2.Event) -> None:
    """An exception ends the program before the cursor is stored."""
    print(json_format.MessageToJson(event, indent=None), flush=True)
