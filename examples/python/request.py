"""What the command line asks for."""

import argparse
import logging
import pathlib
import sys

from prelude.bridge.v1 import event_service_pb2, position_pb2


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Prints the events of a bridge as JSON lines.")
    parser.add_argument("--type", action="append", help="type or pattern, such as user.session.*")
    parser.add_argument("--exclude-type", action="append", help="type or pattern to leave out")
    parser.add_argument("--app", action="append", help="app id")
    parser.add_argument("--user", action="append", help="user id")
    parser.add_argument("--cursor-file", type=pathlib.Path, default="consumer.cursor")
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, stream=sys.stderr)
    return parser.parse_args()


def subscribe_request(arguments: argparse.Namespace, cursor: str) -> event_service_pb2.SubscribeRequest:
    """What comes after the cursor, or all from the oldest event on."""
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
