package main

import (
	"errors"
	"io/fs"
	"os"
	"strings"
)

// cursorStore is the path of a file with the place in the log. A service with a database stores
// the cursor there, in the transaction of its work: then nothing is ever processed twice.
type cursorStore string

func (s cursorStore) load() (string, error) {
	text, err := os.ReadFile(string(s))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(text)), err
}

// save replaces the file as a whole: a crash leaves the old cursor or the new one.
func (s cursorStore) save(cursor string) error {
	beside := string(s) + ".new"
	file, err := os.Create(beside)
	if err != nil {
		return err
	}
	_, err = file.WriteString(cursor + "\n")
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	return os.Rename(beside, string(s))
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
