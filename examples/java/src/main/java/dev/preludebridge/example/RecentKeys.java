package dev.preludebridge.example;

import java.util.LinkedHashMap;
import java.util.Map;

/** The newest keys, up to a limit. */
final class RecentKeys {
    private final Map<String, Boolean> keys;

    RecentKeys(int limit) {
        keys = new LinkedHashMap<>() {
            @Override
            protected boolean removeEldestEntry(Map.Entry<String, Boolean> eldest) {
                return size() > limit;
            }
        };
    }

    /** Whether the key is new. */
    boolean add(String key) {
        return keys.put(key, true) == null;
    }
}
