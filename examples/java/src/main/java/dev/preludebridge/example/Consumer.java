package dev.preludebridge.example;

import com.google.protobuf.util.Durations;
import com.google.protobuf.util.JsonFormat;
import dev.preludebridge.v1.Earliest;
import dev.preludebridge.v1.Event;
import dev.preludebridge.v1.EventServiceGrpc;
import dev.preludebridge.v1.Filter;
import dev.preludebridge.v1.StartPosition;
import dev.preludebridge.v1.SubscribeRequest;
import dev.preludebridge.v1.SubscribeResponse;
import io.grpc.CallCredentials;
import io.grpc.Context;
import io.grpc.ManagedChannel;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.io.IOException;
import java.nio.file.Path;
import java.time.Duration;
import java.util.EnumSet;
import java.util.Iterator;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;

/**
 * Prints the events of a bridge as JSON lines, each once and in order, whatever happens to the
 * bridge, the network or itself. Replace {@link #process} by what your service does.
 */
public final class Consumer {
    /** Exit codes, those of {@code prelude-bridge tail}. */
    private static final int EXIT_FAILED = 1;
    private static final int EXIT_USAGE = 2;
    private static final int EXIT_REFUSED = 4;
    private static final int EXIT_CURSOR_EXPIRED = 5;

    private static final Duration BACKOFF_MIN = Duration.ofMillis(200);
    private static final Duration BACKOFF_MAX = Duration.ofSeconds(30);

    private static final Set<Status.Code> RETRYABLE = EnumSet.of(
            Status.Code.UNAVAILABLE,
            Status.Code.RESOURCE_EXHAUSTED,
            Status.Code.ABORTED,
            Status.Code.DEADLINE_EXCEEDED,
            // Broken connections have many codes.
            Status.Code.CANCELLED,
            Status.Code.INTERNAL,
            Status.Code.UNKNOWN);

    private static final JsonFormat.Printer JSON = JsonFormat.printer().omittingInsignificantWhitespace();

    private final ManagedChannel channel;
    private final EventServiceGrpc.EventServiceBlockingStub service;
    private final Filter filter;
    private final CursorStore store;
    private final RecentKeys seen = new RecentKeys(10_000);
    private final Context.CancellableContext running = Context.current().withCancellation();
    private final CountDownLatch stopped = new CountDownLatch(1);

    /** The place after what was processed; empty at first. */
    private String cursor;
    private int attempts;
    /** What a draining server asks for. */
    private Duration retryAfter = Duration.ZERO;

    private Consumer(Filter filter, CursorStore store) throws IOException {
        this.filter = filter;
        this.store = store;
        cursor = store.load();
        channel = Connection.open();
        CallCredentials credentials = Connection.credentials();
        service = EventServiceGrpc.newBlockingStub(channel).withCallCredentials(credentials);
    }

    public static void main(String[] arguments) throws Exception {
        Filter.Builder filter = Filter.newBuilder();
        Path cursorFile = Path.of("consumer.cursor");
        for (int i = 0; i < arguments.length; i += 2) {
            String value = i + 1 < arguments.length ? arguments[i + 1] : usage();
            switch (arguments[i]) {
                case "--type" -> filter.addTypes(value);
                case "--exclude-type" -> filter.addExcludeTypes(value);
                case "--app" -> filter.addAppIds(value);
                case "--user" -> filter.addUserIds(value);
                case "--cursor-file" -> cursorFile = Path.of(value);
                default -> usage();
            }
        }
        Consumer consumer = new Consumer(filter.build(), new CursorStore(cursorFile));
        Thread main = Thread.currentThread();
        // SIGTERM: end after the response that is being processed. The JVM waits for the hook, and
        // exits with 143 unless it is halted.
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            if (consumer.stop(main)) {
                System.out.flush();
                Runtime.getRuntime().halt(0);
            }
        }));
        int exitCode = consumer.run();
        consumer.channel.shutdownNow();
        if (consumer.stopped.getCount() > 0) {
            consumer.stopped.countDown();
            System.exit(exitCode);
        }
    }

    private static String usage() {
        System.err.println("flags: --type PATTERN, --exclude-type PATTERN, --app ID, --user ID (all repeatable),"
                + " --cursor-file FILE");
        System.exit(EXIT_USAGE);
        return "";
    }

    /** Whether this ended what was still running. */
    private boolean stop(Thread main) {
        if (stopped.getCount() == 0) {
            return false;
        }
        stopped.countDown();
        running.cancel(null);
        try {
            main.join();
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
        return true;
    }

    private boolean isStopped() {
        return stopped.getCount() == 0;
    }

    private int run() throws IOException, InterruptedException {
        while (!isStopped()) {
            Status status = subscribe();
            if (isStopped()) {
                break;
            }
            if (!RETRYABLE.contains(status.getCode())) {
                return exitCode(status);
            }
            Duration delay = nextDelay();
            System.err.printf("reconnecting in %d ms: %s%n", delay.toMillis(), status.getDescription());
            stopped.await(delay.toMillis(), TimeUnit.MILLISECONDS);
        }
        return 0;
    }

    /** Consumes one stream to its end. */
    private Status subscribe() throws IOException {
        StartPosition.Builder start = StartPosition.newBuilder();
        SubscribeRequest request = SubscribeRequest.newBuilder()
                .setFilter(filter)
                .setStart(cursor.isEmpty()
                        ? start.setEarliest(Earliest.getDefaultInstance())
                        : start.setAfterCursor(cursor))
                .setClientName("example-java")
                .build();
        Context previous = running.attach();
        try {
            Iterator<SubscribeResponse> responses = service.subscribe(request);
            while (responses.hasNext()) {
                take(responses.next());
                if (isStopped()) {
                    return Status.CANCELLED;
                }
            }
            // Without a stop position a stream has no reason to end well.
            return Status.UNAVAILABLE.withDescription("the stream ended too early");
        } catch (StatusRuntimeException e) {
            return e.getStatus();
        } finally {
            running.detach(previous);
        }
    }

    private void take(SubscribeResponse response) throws IOException {
        for (Event event : response.getEventsList()) {
            if (seen.add(event.getAppId() + "/" + event.getId())) {
                process(event);
            }
        }
        // Only now: a crash before this line repeats events, a crash after it loses none.
        if (!response.getCursor().equals(cursor)) {
            store.save(response.getCursor());
            cursor = response.getCursor();
        }
        switch (response.getNoticeCase()) {
            case DRAINING -> {
                retryAfter = Duration.ofMillis(Durations.toMillis(response.getDraining().getRetryAfter()));
                System.err.println("the server is shutting down");
            }
            case SKIPPED -> System.err.println("lost to retention: " + response.getSkipped());
            case CAUGHT_UP -> System.err.println("caught up");
            default -> { }
        }
        // Only progress resets the backoff: a server that accepts and fails must not be hammered.
        if (response.getEventsCount() > 0 || response.hasProgress()) {
            attempts = 0;
        }
    }

    /** Where a service does its work. An exception ends the program before the cursor is stored. */
    private static void process(Event event) throws IOException {
        System.out.println(JSON.print(event));
        if (System.out.checkError()) {
            throw new IOException("stdout is closed");
        }
    }

    /** Doubles, on top of what the server asks for. The jitter keeps clients apart. */
    private Duration nextDelay() {
        long step = Math.min(BACKOFF_MIN.toMillis() << Math.min(attempts++, 16), BACKOFF_MAX.toMillis());
        Duration delay = retryAfter.plusMillis(ThreadLocalRandom.current().nextLong(step / 2, step));
        retryAfter = Duration.ZERO;
        return delay;
    }

    private static int exitCode(Status status) {
        System.err.println(status.getCode() + ": " + status.getDescription());
        return switch (status.getCode()) {
            case OUT_OF_RANGE -> {
                System.err.println("remove the cursor file to continue with the oldest event that is left");
                yield EXIT_CURSOR_EXPIRED;
            }
            case UNAUTHENTICATED, PERMISSION_DENIED -> {
                System.err.println("check BRIDGE_TOKEN");
                yield EXIT_REFUSED;
            }
            case INVALID_ARGUMENT -> EXIT_USAGE;
            default -> EXIT_FAILED;
        };
    }
}
