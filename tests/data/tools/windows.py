"""A client in Python with options of its channel: everything that is there, as it was signed.

Prints one JSON object: the length of each event, the last cursor, and what the stream ended with if
that was an error. The tests in tests/bridge/tools.rs run it with the folder of the contract, a
folder for the stubs, the address of the bridge, the options as JSON, and "read" or "wait": who waits
reads on, after the first response, when a line has come on stdin.
"""

import json
import pathlib
import sys
from importlib import resources

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from grpc_tools import protoc

contract, stubs, address, options, pace = sys.argv[1:]
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

channel = grpc.insecure_channel(address, options=list(json.loads(options).items()))
service = event_service_pb2_grpc.EventServiceStub(channel)
request = pb.SubscribeRequest(
    start=position_pb2.StartPosition(earliest=position_pb2.Earliest()),
    stop=position_pb2.StopPosition(head=position_pb2.Head()),
    payload_format=position_pb2.PAYLOAD_FORMAT_RAW,
)
lengths, cursor, error = [], "", None
try:
    for response in service.Subscribe(request, timeout=DEADLINE_SECONDS):
        cursor = response.cursor
        lengths.extend(len(event.raw_json) for event in response.events)
        if pace == "wait":
            pace = sys.stdin.readline()
except grpc.RpcError as failure:
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(failure)
    for detail in status.details if status else []:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
    code = failure.code().name
    error = {"code": code, "reason": info.reason, "cursor": info.metadata["cursor"]}
print(json.dumps({"lengths": lengths, "cursor": cursor, "error": error}))
