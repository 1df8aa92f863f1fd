#!/bin/sh
# Makes the stubs of the contract beside the clients. Needs what requirements.txt names.
set -eu
cd "$(dirname "$0")"
python3 -m grpc_tools.protoc -I ../../proto --python_out=. --pyi_out=. --grpc_python_out=. \
    prelude/bridge/v1/event_service.proto prelude/bridge/v1/event.proto \
    prelude/bridge/v1/payload.proto prelude/bridge/v1/position.proto
