// Reads everything that a bridge has; see ../shared.py.
// Usage: reader ADDRESS CASES, with the cases as a JSON list of objects.
package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"

	bridgev1 "github.com/prelude-bridge/prelude-bridge/gen/go/prelude/bridge/v1"
)

// options are the windows, and the payload format of events that are to be printed.
type options struct {
	Stream, Connection int32
	Format             bridgev1.PayloadFormat
}

type result struct {
	Events  int     `json:"events"`
	Digest  string  `json:"digest"`
	Seconds float64 `json:"seconds"`
}

func main() {
	var cases []options
	if err := json.Unmarshal([]byte(os.Args[2]), &cases); err != nil {
		log.Fatal(err)
	}
	for _, options := range cases {
		result, err := read(os.Args[1], options)
		if err != nil {
			log.Fatal(err)
		}
		if err := json.NewEncoder(os.Stdout).Encode(map[string]any{"result": result}); err != nil {
			log.Fatal(err)
		}
	}
}

func read(address string, options options) (*result, error) {
	began := time.Now()
	dial := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16 << 20)),
	}
	if options.Stream > 0 {
		dial = append(dial, grpc.WithInitialWindowSize(options.Stream))
	}
	if options.Connection > 0 {
		dial = append(dial, grpc.WithInitialConnWindowSize(options.Connection))
	}
	connection, err := grpc.NewClient(address, dial...)
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	stream, err := bridgev1.NewEventServiceClient(connection).Subscribe(context.Background(), &bridgev1.SubscribeRequest{
		Start:         &bridgev1.StartPosition{Position: &bridgev1.StartPosition_Earliest{Earliest: &bridgev1.Earliest{}}},
		Stop:          &bridgev1.StopPosition{Position: &bridgev1.StopPosition_Head{Head: &bridgev1.Head{}}},
		PayloadFormat: cmp.Or(options.Format, bridgev1.PayloadFormat_PAYLOAD_FORMAT_RAW),
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
			if options.Format != 0 {
				line, err := protojson.Marshal(event)
				if err != nil {
					return nil, err
				}
				fmt.Printf("%s\n", line)
			}
		}
	}
}
