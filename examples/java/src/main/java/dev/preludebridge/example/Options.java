package dev.preludebridge.example;

import dev.preludebridge.v1.Filter;
import java.nio.file.Path;

/** What the command line asks for. */
record Options(Filter filter, Path cursorFile) {
    static Options parse(String[] arguments) {
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
        return new Options(filter.build(), cursorFile);
    }

    private static String usage() {
        System.err.println("flags: --type PATTERN, --exclude-type PATTERN, --app ID, --user ID (all repeatable),"
                + " --cursor-file FILE");
        System.exit(ExitCode.USAGE);
        return "";
    }
}
