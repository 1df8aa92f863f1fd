// A receiver that a team would write in an afternoon: it verifies each batch, may append it to a
// file, and streams its events to the subscribers that are there. It keeps no place for anybody and
// drops nothing it has seen before. Only one thing is better than that: an event is encoded once
// for all subscribers (grpc.PreparedMsg), as grpc-go is several times slower without.
package main

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	pb "github.com/prelude-bridge/prelude-bridge/gen/go/prelude/bridge/v1"
)

// What a subscriber may be behind before the publisher waits for it.
const queueEvents = 4096

type subscriber struct {
	stream grpc.ServerStream
	types  []string
	queue  chan *grpc.PreparedMsg
}

type hub struct {
	pb.UnimplementedEventServiceServer
	mu          sync.RWMutex
	subscribers map[*subscriber]struct{}
}

func (h *hub) Subscribe(request *pb.SubscribeRequest, stream grpc.ServerStreamingServer[pb.SubscribeResponse]) error {
	s := &subscriber{stream: stream, types: request.GetFilter().GetTypes(), queue: make(chan *grpc.PreparedMsg, queueEvents)}
	h.mu.Lock()
	h.subscribers[s] = struct{}{}
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		delete(h.subscribers, s)
		h.mu.Unlock()
	}()
	if err := stream.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	for {
		select {
		case message := <-s.queue:
			if err := stream.SendMsg(message); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (h *hub) publish(event *pb.Event) error {
	h.mu.RLock()
	defer h.mu.RUnlock()
	var message *grpc.PreparedMsg
	for s := range h.subscribers {
		if len(s.types) > 0 && !slices.Contains(s.types, event.Type) {
			continue
		}
		if message == nil {
			message = &grpc.PreparedMsg{}
			response := &pb.SubscribeResponse{Events: []*pb.Event{event}}
			if err := message.Encode(s.stream, response); err != nil {
				return err
			}
		}
		select {
		case s.queue <- message:
		case <-s.stream.Context().Done():
		}
	}
	return nil
}

type batch struct {
	AppID  string            `json:"app_id"`
	Events []json.RawMessage `json:"events"`
}

type item struct {
	ID      string `json:"id"`
	Type    string `json:"type"`
	Payload struct {
		UserID string `json:"user_id"`
	} `json:"payload"`
}

type receiver struct {
	hub  *hub
	key  *rsa.PublicKey
	file *os.File
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, request.Body, 1<<20))
	if err != nil {
		http.Error(w, "too large", http.StatusRequestEntityTooLarge)
		return
	}
	if err := r.verify(body, request.Header.Get("X-Webhook-Signature")); err != nil {
		http.Error(w, "wrong signature", http.StatusUnauthorized)
		return
	}
	accepted, err := r.accept(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"accepted":%d}`, accepted)
}

func (r *receiver) verify(body []byte, header string) error {
	encoded, found := strings.CutPrefix(header, "rsassa-pss-sha256=")
	if !found {
		return errors.New("no signature")
	}
	signature, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil {
		return err
	}
	digest := sha256.Sum256(body)
	return rsa.VerifyPSS(r.key, crypto.SHA256, digest[:], signature, nil)
}

func (r *receiver) accept(body []byte) (int, error) {
	var received batch
	if err := json.Unmarshal(body, &received); err != nil {
		return 0, err
	}
	events := make([]*pb.Event, 0, len(received.Events))
	for _, raw := range received.Events {
		var known item
		if err := json.Unmarshal(raw, &known); err != nil {
			return 0, err
		}
		events = append(events, &pb.Event{
			Id: known.ID, Type: known.Type, AppId: received.AppID, UserId: known.Payload.UserID, RawJson: raw,
		})
	}
	if r.file != nil {
		if _, err := r.file.Write(append(body, '\n')); err != nil {
			return 0, err
		}
		if err := r.file.Sync(); err != nil {
			return 0, err
		}
	}
	for _, event := range events {
		if err := r.hub.publish(event); err != nil {
			return 0, err
		}
	}
	return len(events), nil
}

func publicKey(path string) (*rsa.PublicKey, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no PEM")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	public, ok := key.(*rsa.PublicKey)
	if !ok {
		return nil, errors.New("no RSA key")
	}
	return public, nil
}

func run() error {
	keyPath := flag.String("key", "", "the public key, PEM")
	filePath := flag.String("file", "", "append each batch here, flushed, before it is answered")
	flag.Parse()
	key, err := publicKey(*keyPath)
	if err != nil {
		return err
	}
	r := &receiver{hub: &hub{subscribers: map[*subscriber]struct{}{}}, key: key}
	if *filePath != "" {
		r.file, err = os.OpenFile(*filePath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
	}
	streams, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	webhooks, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	pb.RegisterEventServiceServer(server, r.hub)
	go func() { log.Fatal(server.Serve(streams)) }()
	fmt.Printf("{\"message\":\"ready\",\"grpc\":%q,\"webhook\":%q,\"version\":%q}\n", streams.Addr(), webhooks.Addr(), grpc.Version)
	return http.Serve(webhooks, r)
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}
