// Command consumer prints the events of a bridge as JSON lines, each once and in order, whatever
// happens to the bridge, the network or itself. Replace process by what your service does.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	bridgev1 "github.com/prelude-bridge/prelude-bridge/gen/go/prelude/bridge/v1"
)

// Exit codes, those of `prelude-bridge tail`.
const (
	exitFailed        = 1
	exitUsage         = 2
	exitRefused       = 4
	exitCursorExpired = 5
)

const (
	backoffMin = 200 * time.Millisecond
	backoffMax = 30 * time.Second
)

// list is a flag that can be repeated.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(v string) error { *l = append(*l, v); return nil }

func main() {
	filter := &bridgev1.Filter{}
	flag.Var((*list)(&filter.Types), "type", "event type or pattern, such as user.session.*; repeatable")
	flag.Var((*list)(&filter.ExcludeTypes), "exclude-type", "event type or pattern to leave out; repeatable")
	flag.Var((*list)(&filter.AppIds), "app", "app id; repeatable")
	flag.Var((*list)(&filter.UserIds), "user", "user id; repeatable")
	cursorFile := flag.String("cursor-file", "consumer.cursor", "where the place in the log is kept")
	flag.Parse()
	log.SetFlags(log.Ltime)

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, filter, cursorStore(*cursorFile)); err != nil {
		log.Print(err)
		os.Exit(exitCode(err))
	}
}

func run(ctx context.Context, filter *bridgev1.Filter, store cursorStore) error {
	cursor, err := store.load()
	if err != nil {
		return err
	}
	conn, err := dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	c := &consumer{
		client: bridgev1.NewEventServiceClient(conn),
		filter: filter,
		store:  store,
		cursor: cursor,
		seen:   newRecent(10_000),
	}
	for {
		err := c.subscribe(ctx)
		if ctx.Err() != nil {
			return nil // Asked to end. What was processed is stored.
		}
		if !isRetryable(err) {
			return err
		}
		delay := c.nextDelay(err)
		log.Printf("reconnecting in %v: %v", delay.Round(time.Millisecond), err)
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return nil
		}
	}
}

// consumer is the place in the log, and what it takes to get further.
type consumer struct {
	client     bridgev1.EventServiceClient
	filter     *bridgev1.Filter
	store      cursorStore
	cursor     string // the place after what was processed; empty at first
	seen       *recent
	attempts   int
	retryAfter time.Duration // what a draining server asks for
}

// subscribe consumes one stream to its end. It always returns an error.
func (c *consumer) subscribe(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // Releases the stream also when processing fails.
	stream, err := c.client.Subscribe(ctx, &bridgev1.SubscribeRequest{
		Filter:     c.filter,
		Start:      startAfter(c.cursor),
		ClientName: "example-go",
	})
	if err != nil {
		return err
	}
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			// Without a stop position a stream has no reason to end well.
			return status.Error(codes.Unavailable, "the stream ended too early")
		}
		if err != nil {
			return err
		}
		for _, event := range response.Events {
			if !c.seen.add(event.AppId + "/" + event.Id) {
				continue
			}
			if err := process(event); err != nil {
				return err
			}
		}
		// Only now: a crash before this line repeats events, a crash after it loses none.
		if response.Cursor != c.cursor {
			if err := c.store.save(response.Cursor); err != nil {
				return err
			}
			c.cursor = response.Cursor
		}
		switch {
		case response.GetDraining() != nil:
			c.retryAfter = response.GetDraining().RetryAfter.AsDuration()
			log.Print("the server is shutting down")
		case response.GetSkipped() != nil:
			log.Printf("lost to retention: %v", response.GetSkipped())
		case response.GetCaughtUp() != nil:
			log.Print("caught up")
		}
		// Only progress resets the backoff: a server that accepts and fails must not be hammered.
		if len(response.Events) > 0 || response.GetProgress() != nil {
			c.attempts = 0
		}
	}
}

// process is where a service does its work. An error ends the program before the cursor is stored.
func process(event *bridgev1.Event) error {
	line, err := protojson.Marshal(event)
	if err != nil {
		return err
	}
	_, err = fmt.Printf("%s\n", line)
	return err
}

// nextDelay doubles from backoffMin to backoffMax, on top of what the server asks for. The jitter
// keeps clients that lost a server together from coming back together.
func (c *consumer) nextDelay(err error) time.Duration {
	step := min(backoffMin<<min(c.attempts, 16), backoffMax)
	c.attempts++
	delay := c.retryAfter + step/2 + rand.N(step/2)
	c.retryAfter = 0
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			delay = max(delay, info.RetryDelay.AsDuration()+step/2)
		}
	}
	return delay
}

func isRetryable(err error) bool {
	s, ok := status.FromError(err)
	if !ok {
		return false // Our own: processing or storing failed.
	}
	switch s.Code() {
	case codes.Unavailable, codes.ResourceExhausted, codes.Aborted, codes.DeadlineExceeded,
		codes.Canceled, codes.Internal, codes.Unknown: // Broken connections have many codes.
		return true
	default:
		return false
	}
}

func exitCode(err error) int {
	switch status.Code(err) {
	case codes.OutOfRange:
		log.Print("events were lost to retention: remove the cursor file to continue with the oldest that is left")
		return exitCursorExpired
	case codes.Unauthenticated, codes.PermissionDenied:
		log.Print("check BRIDGE_TOKEN")
		return exitRefused
	case codes.InvalidArgument:
		return exitUsage
	default:
		return exitFailed
	}
}

func startAfter(cursor string) *bridgev1.StartPosition {
	if cursor == "" {
		return &bridgev1.StartPosition{Position: &bridgev1.StartPosition_Earliest{Earliest: &bridgev1.Earliest{}}}
	}
	return &bridgev1.StartPosition{Position: &bridgev1.StartPosition_AfterCursor{AfterCursor: cursor}}
}
