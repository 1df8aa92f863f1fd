// Reads everything that a bridge has, with windows of its own; see `run` beside it.
// Usage: client ADDRESS OPTIONS, with the options as a JSON list of objects.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	bridgev1 "github.com/prelude-bridge/prelude-bridge/gen/go/prelude/bridge/v1"
)

type windows struct{ Stream, Connection int32 }

type result struct {
	Events  int     `json:"events"`
	Digest  string  `json:"digest"`
	Seconds float64 `json:"seconds"`
}

func main() {
	var cases []windows
	if err := json.Unmarshal([]byte(os.Args[2]), &cases); err != nil {
		log.Fatal(err)
	}
	for _, windows := range cases {
		result, err := read(os.Args[1], windows)
		if err != nil {
			log.Fatal(err)
		}
		if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
			log.Fatal(err)
		}
	}
}

func read(address string, windows windows) (*result, error) {
	began := time.Now()
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16 << 20)),
	}
	if windows.Stream > 0 {
		options = append(options, grpc.WithInitialWindowSize(windows.Stream))
	}
	if windows.Connection > 0 {
		options = append(options, grpc.WithInitialConnWindowSize(windows.Connection))
	}
	connection, err := grpc.NewClient(address, options...)
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	stream, err := bridgev1.NewEventServiceClient(connection).Subscribe(context.Background(), &bridgev1.SubscribeRequest{
		Start:         &bridgev1.StartPosition{Position: &bridgev1.StartPosition_Earliest{Earliest: &bridgev1.Earliest{}}},
		Stop:          &bridgev1.StopPosition{Position: &bridgev1.StopPosition_Head{Head: &bridgev1.Head{}}},
		PayloadFormat: bridgev1.PayloadFormat_PAYLOAD_FORMAT_RAW,
	})
	if err != nil {
		return nil, err
	}
	events, digest := 0, sha256.New()
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return &result{events, hex.EncodeToString(digest.Sum(nil)), time.Since(began).Seconds()}, nil
		}
		if err != nil {
			return nil, err
		}
		for _, event := range response.Events {
			events++
			digest.Write(event.RawJson)
			digest.Write([]byte("\n"))
		}
	}
}
