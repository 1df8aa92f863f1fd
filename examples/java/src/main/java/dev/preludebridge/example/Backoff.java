package dev.preludebridge.example;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.protobuf.util.Durations;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Context;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.EnumSet;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;

/**
 * When to try again: doubles, on top of what the server asks for. The jitter keeps clients that lost
 * a server together from coming back together.
 */
final class Backoff {
    private static final long MIN_MS = 200;
    private static final long MAX_MS = 30_000;

    /** Of errors that are not the bridge's own. */
    private static final Set<Status.Code> RETRYABLE = EnumSet.of(
            Status.Code.UNAVAILABLE,
            Status.Code.RESOURCE_EXHAUSTED,
            Status.Code.ABORTED,
            Status.Code.DEADLINE_EXCEEDED,
            // Broken connections have many codes.
            Status.Code.CANCELLED,
            Status.Code.INTERNAL,
            Status.Code.UNKNOWN);

    private int attempts;
    private Duration retryAfter = Duration.ZERO;

    /**
     * Whether the same call can succeed later. Of its own errors the bridge says so, by a RetryInfo; those
     * of proxies and broken connections have only a code.
     */
    static boolean isRetryable(StatusRuntimeException failure) throws InvalidProtocolBufferException {
        ErrorInfo info = detail(failure, ErrorInfo.class);
        return info != null && info.getDomain().equals("prelude-bridge")
                ? detail(failure, RetryInfo.class) != null
                : RETRYABLE.contains(failure.getStatus().getCode());
    }

    /** For progress only: a server that accepts and fails must not be hammered. */
    void reset() {
        attempts = 0;
    }

    /** What the server asks for. */
    void retryAfter(Duration duration) {
        retryAfter = duration;
    }

    /** Returns when it is time to try again, or when the context is cancelled. */
    void await(Context.CancellableContext running, StatusRuntimeException failure)
            throws InterruptedException, InvalidProtocolBufferException {
        if (running.isCancelled()) {
            return;
        }
        RetryInfo info = detail(failure, RetryInfo.class);
        if (info != null) {
            long asked = Durations.toMillis(info.getRetryDelay());
            retryAfter = Duration.ofMillis(Math.max(retryAfter.toMillis(), asked));
        }
        long step = Math.min(MIN_MS << Math.min(attempts++, 16), MAX_MS);
        long delay = retryAfter.toMillis() + ThreadLocalRandom.current().nextLong(step / 2, step);
        retryAfter = Duration.ZERO;

        System.err.printf("reconnecting in %d ms: %s%n", delay, failure.getMessage());
        CountDownLatch cancelled = new CountDownLatch(1);
        Context.CancellationListener listener = context -> cancelled.countDown();
        running.addListener(listener, Runnable::run);
        cancelled.await(delay, TimeUnit.MILLISECONDS);
        running.removeListener(listener);
    }

    /** The detail of this kind, or null. */
    private static <T extends Message> T detail(StatusRuntimeException failure, Class<T> kind)
            throws InvalidProtocolBufferException {
        for (Any detail : StatusProto.fromThrowable(failure).getDetailsList()) {
            if (detail.is(kind)) {
                return detail.unpack(kind);
            }
        }
        return null;
    }
}
