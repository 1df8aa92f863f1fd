package dev.preludebridge.example;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;

/**
 * A file with the place in the log. A service with a database stores the cursor there, in the
 * transaction of its work: then nothing is ever processed twice.
 */
record CursorStore(Path path) {
    String load() throws IOException {
        return Files.exists(path) ? Files.readString(path).strip() : "";
    }

    /** Replaces the file as a whole: a crash leaves the old cursor or the new one. */
    void save(String cursor) throws IOException {
        Path beside = path.resolveSibling(path.getFileName() + ".new");
        try (FileChannel file = FileChannel.open(
                beside,
                StandardOpenOption.CREATE,
                StandardOpenOption.WRITE,
                StandardOpenOption.TRUNCATE_EXISTING)) {
            ByteBuffer line = StandardCharsets.UTF_8.encode(cursor + "\n");
            while (line.hasRemaining()) {
                file.write(line);
            }
            file.force(true);
        }
        Files.move(beside, path, StandardCopyOption.ATOMIC_MOVE);
    }
}
