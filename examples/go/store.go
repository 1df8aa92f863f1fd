package main

import (
	"errors"
	"io/fs"
	"os"
	"strings"
)

// cursorStore keeps the place in the log in a file. A service with a database stores the cursor
// there, in the transaction of its work: then nothing is ever processed twice.
type cursorStore struct {
	path   string
	cursor string // the place after what was processed; empty at first
}

func openCursorStore(path string) (*cursorStore, error) {
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return &cursorStore{path: path, cursor: strings.TrimSpace(string(text))}, nil
}

// save replaces the file as a whole: a crash leaves the old cursor or the new one.
func (s *cursorStore) save(cursor string) error {
	if cursor == s.cursor {
		return nil
	}
	beside := s.path + ".new"
	file, err := os.Create(beside)
	if err != nil {
		return err
	}
	_, err = file.WriteString(cursor + "\n")
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Rename(beside, s.path); err != nil {
		return err
	}
	s.cursor = cursor
	return nil
}

// recent remembers the newest keys, up to a limit.
type recent struct {
	keys map[string]struct{}
	ring []string
	next int
}

func newRecent(limit int) *recent {
	return &recent{keys: make(map[string]struct{}, limit), ring: make([]string, limit)}
}

// add reports whether the key is new.
func (r *recent) add(key string) bool {
	if _, known := r.keys[key]; known {
		return false
	}
	delete(r.keys, r.ring[r.next])
	r.ring[r.next] = key
	r.keys[key] = struct{}{}
	r.next = (r.next + 1) % len(r.ring)
	return true
}
