"""A client in Python with options of its channel: everything that is there, as it was signed.

Prints one JSON object: the length of each event. The test in tests/bridge/windows.rs runs it with the
folder of the contract, a folder for the stubs, the address of the bridge, and the options as JSON.
"""

import json
import pathlib
import sys
from importlib import resources

import grpc
from grpc_tools import protoc

contract, stubs, address, options = sys.argv[1:]
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
    payload_format=pb.PAYLOAD_FORMAT_RAW,
)
lengths = []
for response in service.Subscribe(request, timeout=DEADLINE_SECONDS):
    lengths.extend(len(event.raw_json) for event in response.events)
print(json.dumps({"lengths": lengths}))
