"""A client as its users would write it in Python: stubs from the contract, events, a refusal.

Prints one JSON object: what came back. The test in tests/bridge/tools.rs runs it with the folder of
the contract, an empty folder for the stubs, and the address of the bridge.
"""

import json
import pathlib
import sys
from importlib import resources

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from grpc_tools import protoc

contract, stubs, address = sys.argv[1:]
DEADLINE_SECONDS = 60

files = [str(path) for path in pathlib.Path(contract).rglob("*.proto")]
# google/protobuf/*.proto come with the compiler.
common = resources.files("grpc_tools") / "_proto"
folders = [f"-I{contract}", f"-I{common}", f"--python_out={stubs}", f"--grpc_python_out={stubs}"]
if protoc.main(["protoc", *folders, *files]):
    sys.exit("the stubs cannot be made")
sys.path.insert(0, stubs)
from prelude.bridge.v1 import event_service_pb2 as pb  # noqa: E402: made above
from prelude.bridge.v1 import event_service_pb2_grpc, position_pb2  # noqa: E402

channel = grpc.insecure_channel(address)
service = event_service_pb2_grpc.EventServiceStub(channel)

events, cursor = [], ""
request = pb.SubscribeRequest(
    start=position_pb2.StartPosition(earliest=position_pb2.Earliest()),
    stop=position_pb2.StopPosition(max_events=3),
)
for response in service.Subscribe(request, timeout=DEADLINE_SECONDS):
    cursor = response.cursor
    for event in response.events:
        events.append(
            {
                "sequence": event.sequence,
                "type": event.type,
                "user_id": event.user_id,
                "payload": event.WhichOneof("payload"),
                "payload_user_id": getattr(event, event.WhichOneof("payload")).user_id,
            }
        )

resumed = []
request = pb.SubscribeRequest(
    start=position_pb2.StartPosition(after_cursor=cursor),
    stop=position_pb2.StopPosition(max_events=2),
)
for response in service.Subscribe(request, timeout=DEADLINE_SECONDS):
    resumed.extend(event.sequence for event in response.events)

try:
    request = pb.SubscribeRequest(start=position_pb2.StartPosition(after_cursor="no cursor"))
    for _ in service.Subscribe(request, timeout=DEADLINE_SECONDS):
        pass
    sys.exit("a malformed cursor was taken")
except grpc.RpcError as refusal:
    info = error_details_pb2.ErrorInfo()
    for detail in rpc_status.from_call(refusal).details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
    error = {"code": refusal.code().name, "domain": info.domain, "reason": info.reason}

log = service.GetRange(pb.GetRangeRequest(), timeout=DEADLINE_SECONDS)
print(
    json.dumps(
        {
            "events": events,
            "resumed": resumed,
            "error": error,
            "earliest": log.earliest.sequence,
            "head": log.head.sequence,
        }
    )
)
