package dev.preludebridge.example;

import com.google.protobuf.util.Durations;
import com.google.protobuf.util.JsonFormat;
import dev.preludebridge.v1.Event;
import dev.preludebridge.v1.EventServiceGrpc;
import dev.preludebridge.v1.SubscribeRequest;
import dev.preludebridge.v1.SubscribeResponse;
import io.grpc.Context;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.io.IOException;
import java.time.Duration;
import java.util.Iterator;

/**
 * Prints the events of a bridge as JSON lines, each once and in order, whatever happens to the
 * bridge, the network or itself. Replace {@link #process} by what your service does.
 */
public final class Consumer {
    private static final JsonFormat.Printer JSON = JsonFormat.printer().omittingInsignificantWhitespace();

    private final EventServiceGrpc.EventServiceBlockingStub service;
    private final Options options;
    private final CursorStore store;
    private final RecentKeys seen = new RecentKeys(10_000);
    private final Backoff backoff = new Backoff();
    private final Context.CancellableContext running = Context.current().withCancellation();

    private Consumer(Options options) throws IOException {
        this.options = options;
        store = new CursorStore(options.cursorFile());
        service = EventServiceGrpc.newBlockingStub(Connection.open()).withCallCredentials(Connection.credentials());
    }

    public static void main(String[] arguments) throws Exception {
        Consumer consumer = new Consumer(Options.parse(arguments));
        Runtime.getRuntime().addShutdownHook(consumer.stopper(Thread.currentThread()));
        int exitCode = consumer.run();
        System.out.flush();
        // Not exit: after SIGTERM the JVM is ending already, and would do so with 143.
        Runtime.getRuntime().halt(exitCode);
    }

    /** What SIGTERM starts: ends the main thread after the response that is being processed. */
    private Thread stopper(Thread main) {
        return new Thread(() -> {
            running.cancel(null);
            try {
                main.join();
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
            }
        });
    }

    private int run() throws Exception {
        while (!running.isCancelled()) {
            try {
                running.call(this::subscribe);
            } catch (StatusRuntimeException e) {
                if (!Backoff.isRetryable(e)) {
                    return ExitCode.of(e.getStatus());
                }
                backoff.await(running, e);
            }
        }
        return 0;
    }

    /** Consumes one stream to its end, which is always an exception. */
    private Void subscribe() throws IOException {
        SubscribeRequest request = SubscribeRequest.newBuilder()
                .setFilter(options.filter())
                .setStart(store.startPosition())
                .setClientName("example-java")
                .build();
        Iterator<SubscribeResponse> responses = service.subscribe(request);
        while (responses.hasNext()) {
            take(responses.next());
        }
        // Without a stop position a stream has no reason to end well.
        throw Status.UNAVAILABLE.withDescription("the stream ended too early").asRuntimeException();
    }

    /**
     * Processes a response, and only then stores its cursor: a crash in between repeats events, and
     * never loses one.
     */
    private void take(SubscribeResponse response) throws IOException {
        for (Event event : response.getEventsList()) {
            if (seen.add(event.getAppId() + "/" + event.getType() + "/" + event.getId())) {
                process(event);
            }
        }
        store.save(response.getCursor());
        switch (response.getNoticeCase()) {
            case DRAINING -> backoff.retryAfter(
                    Duration.ofMillis(Durations.toMillis(response.getDraining().getRetryAfter())));
            case SKIPPED -> System.err.println("events were skipped: " + response.getSkipped());
            default -> { }
        }
        // A draining stream worked: its end is planned.
        if (response.getEventsCount() > 0 || response.hasProgress() || response.hasDraining()) {
            backoff.reset();
        }
    }

    /** Where a service does its work. An exception ends the program before the cursor is stored. */
    private static void process(Event event) throws IOException {
        System.out.println(JSON.print(event));
        if (System.out.checkError()) {
            throw new IOException("stdout is closed");
        }
    }
}
