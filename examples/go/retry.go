package main

import (
	"context"
	"log"
	"math/rand/v2"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	backoffMin = 200 * time.Millisecond
	backoffMax = 30 * time.Second
)

// backoff doubles from backoffMin to backoffMax, on top of what the server asks for. The jitter
// keeps clients that lost a server together from coming back together.
type backoff struct {
	attempts   int
	retryAfter time.Duration // what a draining server asks for
}

// reset is for progress only: a server that accepts and fails must not be hammered.
func (b *backoff) reset() { b.attempts = 0 }

// wait returns when it is time to try again, or at once when the context is done.
func (b *backoff) wait(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	if info := detail[*errdetails.RetryInfo](status.Convert(err)); info != nil {
		b.retryAfter = max(b.retryAfter, info.RetryDelay.AsDuration())
	}
	step := min(backoffMin<<min(b.attempts, 16), backoffMax)
	delay := b.retryAfter + step/2 + rand.N(step/2)
	b.attempts++
	b.retryAfter = 0

	log.Printf("reconnecting in %v: %v", delay.Round(time.Millisecond), err)
	select {
	case <-time.After(delay):
	case <-ctx.Done():
	}
}

// isRetryable reports whether the same call can succeed later. Of its own errors the bridge says so, by a
// RetryInfo; those of proxies and broken connections have only a code.
func isRetryable(err error) bool {
	s, ok := status.FromError(err)
	if !ok {
		return false // Our own: processing or storing failed.
	}
	if detail[*errdetails.ErrorInfo](s).GetDomain() == "prelude-bridge" {
		return detail[*errdetails.RetryInfo](s) != nil
	}
	switch s.Code() {
	case codes.Unavailable, codes.ResourceExhausted, codes.Aborted, codes.DeadlineExceeded,
		codes.Canceled, codes.Internal, codes.Unknown: // Broken connections have many codes.
		return true
	default:
		return false
	}
}

// detail gives the detail of this kind, or nil.
func detail[T any](s *status.Status) (found T) {
	for _, detail := range s.Details() {
		if detail, ok := detail.(T); ok {
			return detail
		}
	}
	return found
}

// exitCode gives those of `prelude-bridge tail`.
func exitCode(err error) int {
	switch status.Code(err) {
	case codes.OutOfRange:
		log.Print("events were lost to retention: remove the cursor file to continue with the oldest that is left")
		return 5
	case codes.DataLoss:
		log.Print("events are damaged on the bridge's disk: ask its operator, or set on_damaged to continue without them")
		return 1
	case codes.Unauthenticated, codes.PermissionDenied:
		log.Print("check BRIDGE_TOKEN")
		return 4
	case codes.InvalidArgument, codes.ResourceExhausted: // The request is not valid, or too large.
		return 2
	default:
		return 1
	}
}
