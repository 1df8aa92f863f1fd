package main

import (
	"flag"
	"strings"

	bridgev1 "github.com/prelude-bridge/prelude-bridge/gen/go/prelude/bridge/v1"
)

// parseFlags gives what to subscribe to, and the file with the place in the log.
func parseFlags() (*bridgev1.Filter, string) {
	filter := &bridgev1.Filter{}
	flag.Var((*list)(&filter.Types), "type", "event type or pattern, such as user.session.*; repeatable")
	flag.Var((*list)(&filter.ExcludeTypes), "exclude-type", "event type or pattern to leave out; repeatable")
	flag.Var((*list)(&filter.AppIds), "app", "app id; repeatable")
	flag.Var((*list)(&filter.UserIds), "user", "user id; repeatable")
	cursorFile := flag.String("cursor-file", "consumer.cursor", "where the place in the log is kept")
	flag.Parse()
	return filter, *cursorFile
}

// startAfter continues after a cursor, or begins with the oldest event.
func startAfter(cursor string) *bridgev1.StartPosition {
	if cursor == "" {
		return &bridgev1.StartPosition{Position: &bridgev1.StartPosition_Earliest{Earliest: &bridgev1.Earliest{}}}
	}
	return &bridgev1.StartPosition{Position: &bridgev1.StartPosition_AfterCursor{AfterCursor: cursor}}
}

// list is a flag that can be repeated.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(v string) error { *l = append(*l, v); return nil }
