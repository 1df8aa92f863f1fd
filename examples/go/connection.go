package main

import (
	"cmp"
	"context"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

// dial connects to BRIDGE_ADDRESS: over TLS if BRIDGE_CA names a file of CA certificates, or is
// "system" for those of the machine; with BRIDGE_TOKEN as the credential.
func dial() (*grpc.ClientConn, error) {
	transport := insecure.NewCredentials()
	switch ca := os.Getenv("BRIDGE_CA"); ca {
	case "":
	case "system":
		transport = credentials.NewTLS(nil)
	default:
		var err error
		if transport, err = credentials.NewClientTLSFromFile(ca, ""); err != nil {
			return nil, err
		}
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		// Notices a server that is gone without a word, and keeps proxies from closing idle streams.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16 << 20)),
		// gRPC's own backoff, up to two minutes, would come on top of ours.
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 5 * time.Second}),
	}
	if token := os.Getenv("BRIDGE_TOKEN"); token != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer(token)))
	}
	return grpc.NewClient(cmp.Or(os.Getenv("BRIDGE_ADDRESS"), "127.0.0.1:50051"), options...)
}

type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

// RequireTransportSecurity is false so that a sidecar can do the TLS.
func (bearer) RequireTransportSecurity() bool { return false }
