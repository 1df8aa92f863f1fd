package dev.preludebridge.example;

import io.grpc.Status;

/** How the program ends: as {@code prelude-bridge tail} does. */
final class ExitCode {
    static final int USAGE = 2;

    private ExitCode() { }

    /** Of what does not pass by itself; says what to do about it. */
    static int of(Status status) {
        System.err.println(status.getCode() + ": " + status.getDescription());
        return switch (status.getCode()) {
            case OUT_OF_RANGE -> {
                System.err.println("remove the cursor file to continue with the oldest event that is left");
                yield 5;
            }
            case DATA_LOSS -> {
                System.err.println("ask the bridge's operator, or set on_damaged to continue without them");
                yield 1;
            }
            case UNAUTHENTICATED, PERMISSION_DENIED -> {
                System.err.println("check BRIDGE_TOKEN");
                yield 4;
            }
            // The request is not valid, or too large.
            case INVALID_ARGUMENT, RESOURCE_EXHAUSTED -> USAGE;
            default -> 1;
        };
    }
}
