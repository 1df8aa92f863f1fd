package dev.preludebridge.example;

import dev.preludebridge.v1.Earliest;
import dev.preludebridge.v1.StartPosition;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;

/**
 * Keeps the place in the log in a file. A service with a database stores the cursor there, in the
 * transaction of its work: then nothing is ever processed twice.
 */
final class CursorStore {
    private final Path path;
    /** The place after what was processed; empty at first. */
    private String cursor;

    CursorStore(Path path) throws IOException {
        this.path = path;
        cursor = Files.exists(path) ? Files.readString(path).strip() : "";
    }

    /** After the cursor, or with the oldest event. */
    StartPosition startPosition() {
        StartPosition.Builder start = StartPosition.newBuilder();
        return cursor.isEmpty()
                ? start.setEarliest(Earliest.getDefaultInstance()).build()
                : start.setAfterCursor(cursor).build();
    }

    /** Replaces the file as a whole: a crash leaves the old cursor or the new one. */
    void save(String newest) throws IOException {
        if (newest.equals(cursor)) {
            return;
        }
        Path beside = path.resolveSibling(path.getFileName() + ".new");
        try (FileChannel file = FileChannel.open(
                beside,
                StandardOpenOption.CREATE,
                StandardOpenOption.WRITE,
                StandardOpenOption.TRUNCATE_EXISTING)) {
            ByteBuffer line = StandardCharsets.UTF_8.encode(newest + "\n");
            while (line.hasRemaining()) {
                file.write(line);
            }
            file.force(true);
        }
        Files.move(beside, path, StandardCopyOption.ATOMIC_MOVE);
        cursor = newest;
    }
}
