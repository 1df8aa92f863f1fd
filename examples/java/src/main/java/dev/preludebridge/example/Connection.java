package dev.preludebridge.example;

import io.grpc.CallCredentials;
import io.grpc.ChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.TlsChannelCredentials;
import java.io.File;
import java.io.IOException;
import java.util.concurrent.Executor;
import java.util.concurrent.TimeUnit;

/** What the environment says about the bridge: BRIDGE_ADDRESS, BRIDGE_CA and BRIDGE_TOKEN. */
final class Connection {
    private static final Metadata.Key<String> AUTHORIZATION =
            Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

    private Connection() { }

    static ManagedChannel open() throws IOException {
        String address = System.getenv().getOrDefault("BRIDGE_ADDRESS", "127.0.0.1:50051");
        return Grpc.newChannelBuilder(address, transport())
                // Notices a server that is gone without a word, and keeps proxies from closing
                // idle streams.
                .keepAliveTime(30, TimeUnit.SECONDS)
                .keepAliveTimeout(20, TimeUnit.SECONDS)
                .maxInboundMessageSize(16 << 20)
                .build();
    }

    /** TLS if BRIDGE_CA names a file of CA certificates, or is "system" for those of the JVM. */
    private static ChannelCredentials transport() throws IOException {
        String ca = System.getenv("BRIDGE_CA");
        if (ca == null || ca.isEmpty()) {
            return InsecureChannelCredentials.create();
        }
        return ca.equals("system")
                ? TlsChannelCredentials.create()
                : TlsChannelCredentials.newBuilder().trustManager(new File(ca)).build();
    }

    /** BRIDGE_TOKEN as the credential of a call. */
    static CallCredentials credentials() {
        String token = System.getenv("BRIDGE_TOKEN");
        if (token == null || token.isEmpty()) {
            return null;
        }
        return new CallCredentials() {
            @Override
            public void applyRequestMetadata(RequestInfo call, Executor executor, MetadataApplier applier) {
                Metadata headers = new Metadata();
                headers.put(AUTHORIZATION, "Bearer " + token);
                applier.apply(headers);
            }
        };
    }
}
