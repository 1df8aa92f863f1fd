// Command consumer prints the events of a bridge as JSON lines, each once and in order, whatever
// happens to the bridge, the network or itself. Replace process by what your service does.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	bridgev1 "github.com/prelude-bridge/prelude-bridge/gen/go/prelude/bridge/v1"
)

func main() {
	filter, cursorFile := parseFlags()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, filter, cursorFile); err != nil {
		log.Print(err)
		os.Exit(exitCode(err))
	}
}

// consumer is the place in the log, and what it takes to get further.
type consumer struct {
	client  bridgev1.EventServiceClient
	filter  *bridgev1.Filter
	store   *cursorStore
	seen    *recent
	backoff backoff
}

func run(ctx context.Context, filter *bridgev1.Filter, cursorFile string) error {
	store, err := openCursorStore(cursorFile)
	if err != nil {
		return err
	}
	conn, err := dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	c := &consumer{client: bridgev1.NewEventServiceClient(conn), filter: filter, store: store, seen: newRecent(10_000)}
	for ctx.Err() == nil {
		err := c.subscribe(ctx)
		if !isRetryable(err) {
			return err
		}
		c.backoff.wait(ctx, err)
	}
	return nil // Asked to end. What was processed is stored.
}

// subscribe consumes one stream to its end. It always returns an error.
func (c *consumer) subscribe(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // Releases the stream also when processing fails.
	request := &bridgev1.SubscribeRequest{Filter: c.filter, Start: startAfter(c.store.cursor), ClientName: "example-go"}
	stream, err := c.client.Subscribe(ctx, request)
	if err != nil {
		return err
	}
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) { // Without a stop position a stream has no reason to end well.
			return status.Error(codes.Unavailable, "the stream ended too early")
		}
		if err != nil {
			return err
		}
		if err := c.take(response); err != nil {
			return err
		}
	}
}

// take processes a response, and only then stores its cursor: a crash in between repeats events,
// and never loses one.
func (c *consumer) take(response *bridgev1.SubscribeResponse) error {
	for _, event := range response.Events {
		if !c.seen.add(event.AppId + "/" + event.Type + "/" + event.Id) {
			continue
		}
		if err := process(event); err != nil {
			return err
		}
	}
	if err := c.store.save(response.Cursor); err != nil {
		return err
	}
	switch notice := response.Notice.(type) {
	case *bridgev1.SubscribeResponse_Draining:
		c.backoff.retryAfter = notice.Draining.RetryAfter.AsDuration()
	case *bridgev1.SubscribeResponse_Skipped:
		log.Printf("events were skipped: %v", notice.Skipped)
	}
	// A draining stream worked: its end is planned.
	if len(response.Events) > 0 || response.GetProgress() != nil || response.GetDraining() != nil {
		c.backoff.reset()
	}
	return nil
}

// process is where a service does its work. An error ends the program before the cursor is stored.
func process(event *bridgev1.Event) error {
	line, err := protojson.Marshal(event)
	if err == nil {
		_, err = fmt.Printf("%s\n", line)
	}
	return err
}
