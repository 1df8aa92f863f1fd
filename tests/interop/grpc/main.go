// The cases of gRPC's own interoperability tests
// (https://github.com/grpc/grpc/blob/master/doc/interop-test-descriptions.md) that mean something here,
// against the services of the bridge: they have other messages than grpc.testing.TestService. The bridge
// at the address that is given has no credentials and at least one event. Prints one line a case.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/gzip"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	bridge "github.com/prelude-bridge/prelude-bridge/gen/go/prelude/bridge/v1"
)

// plain is a compressor that the bridge does not have.
type plain struct{}

type closer struct{ io.Writer }

func (closer) Close() error { return nil }

func (plain) Compress(w io.Writer) (io.WriteCloser, error) { return closer{w}, nil }
func (plain) Decompress(r io.Reader) (io.Reader, error)    { return r, nil }
func (plain) Name() string                                 { return "plain" }

func main() {
	encoding.RegisterCompressor(plain{})
	connection, err := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		fail("connection", err)
	}
	defer func() { _ = connection.Close() }()
	events := bridge.NewEventServiceClient(connection)

	run("empty_unary", func(ctx context.Context) error {
		_, err := events.GetRange(ctx, &bridge.GetRangeRequest{})
		return err
	})
	run("large_unary", func(ctx context.Context) error {
		_, err := read(ctx, events, largest())
		return err
	})
	run("client_compressed_unary", func(ctx context.Context) error {
		_, err := events.GetRange(ctx, &bridge.GetRangeRequest{}, grpc.UseCompressor(gzip.Name))
		return err
	})
	run("client_compressed_streaming", func(ctx context.Context) error {
		_, err := read(ctx, events, largest(), grpc.UseCompressor(gzip.Name))
		return err
	})
	run("unknown_compressor", func(ctx context.Context) error {
		_, err := events.GetRange(ctx, &bridge.GetRangeRequest{}, grpc.UseCompressor("plain"))
		return expect(err, codes.Unimplemented, "ENCODING_UNSUPPORTED")
	})
	run("server_streaming", func(ctx context.Context) error {
		count, err := read(ctx, events, history(nil))
		if err == nil && count == 0 {
			return errors.New("no event came")
		}
		return err
	})
	run("custom_metadata", func(ctx context.Context) error {
		ctx = metadata.AppendToOutgoingContext(ctx,
			"x-grpc-test-echo-initial", "test_initial_metadata_value",
			"x-grpc-test-echo-trailing-bin", "\xab\xab\xab")
		_, err := read(ctx, events, history(nil))
		return err
	})
	run("oversized_metadata", func(ctx context.Context) error {
		ctx = metadata.AppendToOutgoingContext(ctx, "x-large", strings.Repeat("x", 20_000))
		_, err := events.GetRange(ctx, &bridge.GetRangeRequest{})
		return expect(err, codes.InvalidArgument, "REQUEST_INVALID")
	})
	run("status_code_and_message", func(ctx context.Context) error {
		_, err := read(ctx, events, history(&bridge.Filter{Types: []string{"a.**.b"}}))
		return expect(err, codes.InvalidArgument, "FILTER_INVALID")
	})
	// The message names the cursor's field; whatever was sent as one does not come back.
	run("special_status_message", func(ctx context.Context) error {
		request := history(nil)
		request.Start.Position = &bridge.StartPosition_AfterCursor{AfterCursor: "\t\n☺ and 😈\r\n%"}
		_, err := read(ctx, events, request)
		return expect(err, codes.InvalidArgument, "CURSOR_MALFORMED")
	})
	run("unimplemented_method", func(ctx context.Context) error {
		method := "/prelude.bridge.v1.EventService/UnimplementedCall"
		err := connection.Invoke(ctx, method, &bridge.GetRangeRequest{}, &bridge.GetRangeResponse{})
		return expect(err, codes.Unimplemented, "RPC_UNKNOWN")
	})
	run("unimplemented_service", func(ctx context.Context) error {
		method := "/grpc.testing.UnimplementedService/UnimplementedCall"
		err := connection.Invoke(ctx, method, &bridge.GetRangeRequest{}, &bridge.GetRangeResponse{})
		return expect(err, codes.Unimplemented, "RPC_UNKNOWN")
	})
	run("cancel_after_first_response", func(ctx context.Context) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := events.Subscribe(ctx, &bridge.SubscribeRequest{})
		if err != nil {
			return err
		}
		if _, err := stream.Recv(); err != nil {
			return err
		}
		cancel()
		for err == nil {
			_, err = stream.Recv()
		}
		return expect(err, codes.Canceled, "")
	})
	run("timeout_on_sleeping_server", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := read(ctx, events, &bridge.SubscribeRequest{})
		return expect(err, codes.DeadlineExceeded, "")
	})
	run("health_check", func(ctx context.Context) error {
		health := healthpb.NewHealthClient(connection)
		_, err := health.Check(ctx, &healthpb.HealthCheckRequest{}, grpc.UseCompressor(gzip.Name))
		return err
	})
}

// history asks for all events that are there.
func history(filter *bridge.Filter) *bridge.SubscribeRequest {
	return &bridge.SubscribeRequest{
		Filter: filter,
		Start:  &bridge.StartPosition{Position: &bridge.StartPosition_Earliest{Earliest: &bridge.Earliest{}}},
		Stop:   &bridge.StopPosition{Position: &bridge.StopPosition_Head{Head: &bridge.Head{}}},
	}
}

// largest has the largest filter that the contract allows.
func largest() *bridge.SubscribeRequest {
	entries := make([]string, 256)
	for at := range entries {
		entries[at] = fmt.Sprintf("%03d%s", at, strings.Repeat("x", 253))
	}
	return history(&bridge.Filter{Types: entries, ExcludeTypes: entries, AppIds: entries, UserIds: entries})
}

// read returns how many events a stream had, once it has ended.
func read(
	ctx context.Context, events bridge.EventServiceClient, request *bridge.SubscribeRequest, options ...grpc.CallOption,
) (int, error) {
	stream, err := events.Subscribe(ctx, request, options...)
	count := 0
	for err == nil {
		var response *bridge.SubscribeResponse
		if response, err = stream.Recv(); err == nil {
			count += len(response.GetEvents())
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return count, err
}

// expect is an error unless there is one of this code, with this reason if there is to be one.
func expect(err error, code codes.Code, reason string) error {
	found := status.Convert(err)
	if found.Code() != code {
		return fmt.Errorf("%v in place of %v: %s", found.Code(), code, found.Message())
	}
	if reason == "" {
		return nil
	}
	for _, detail := range found.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetReason() == reason {
			return nil
		}
	}
	return fmt.Errorf("no reason %s: %v", reason, found.Details())
}

func run(name string, test func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := test(ctx); err != nil {
		fail(name, err)
	}
	fmt.Println("ok", name)
}

func fail(name string, err error) {
	fmt.Fprintln(os.Stderr, "FAILED", name+":", err)
	os.Exit(1)
}
