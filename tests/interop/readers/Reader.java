import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.google.protobuf.util.JsonFormat;
import dev.preludebridge.v1.Earliest;
import dev.preludebridge.v1.Event;
import dev.preludebridge.v1.EventServiceGrpc;
import dev.preludebridge.v1.Head;
import dev.preludebridge.v1.PayloadFormat;
import dev.preludebridge.v1.StartPosition;
import dev.preludebridge.v1.StopPosition;
import dev.preludebridge.v1.SubscribeRequest;
import dev.preludebridge.v1.SubscribeResponse;
import io.grpc.ManagedChannel;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import java.security.MessageDigest;
import java.util.HexFormat;
import java.util.Iterator;

/**
 * Reads everything that a bridge has; see ../shared.py.
 * Usage: Reader ADDRESS CASES, with the cases as a JSON list of objects: windows, and `format`, the payload
 * format of events that are to be printed.
 */
final class Reader {
    private static final JsonFormat.Printer JSON = JsonFormat.printer().omittingInsignificantWhitespace();

    public static void main(String[] arguments) throws Exception {
        for (JsonElement options : JsonParser.parseString(arguments[1]).getAsJsonArray()) {
            System.out.println(read(arguments[0], options.getAsJsonObject()));
        }
    }

    private static JsonObject read(String address, JsonObject options) throws Exception {
        long began = System.nanoTime();
        NettyChannelBuilder builder = NettyChannelBuilder.forTarget(address).usePlaintext();
        if (options.has("window")) {
            builder.flowControlWindow(options.get("window").getAsInt());
        }
        if (options.has("initial")) {
            builder.initialFlowControlWindow(options.get("initial").getAsInt());
        }
        ManagedChannel channel = builder.build();
        int format = options.has("format") ? options.get("format").getAsInt() : 0;
        SubscribeRequest request = SubscribeRequest.newBuilder()
                .setStart(StartPosition.newBuilder().setEarliest(Earliest.getDefaultInstance()))
                .setStop(StopPosition.newBuilder().setHead(Head.getDefaultInstance()))
                .setPayloadFormatValue(format == 0 ? PayloadFormat.PAYLOAD_FORMAT_RAW_VALUE : format)
                .build();
        MessageDigest digest = MessageDigest.getInstance("SHA-256");
        int events = 0;
        Iterator<SubscribeResponse> responses = EventServiceGrpc.newBlockingStub(channel).subscribe(request);
        while (responses.hasNext()) {
            for (Event event : responses.next().getEventsList()) {
                events++;
                digest.update(event.getRawJson().toByteArray());
                digest.update((byte) '\n');
                if (format != 0) {
                    System.out.println(JSON.print(event));
                }
            }
        }
        channel.shutdownNow();
        JsonObject result = new JsonObject();
        result.addProperty("events", events);
        result.addProperty("digest", HexFormat.of().formatHex(digest.digest()));
        result.addProperty("seconds", (System.nanoTime() - began) / 1e9);
        JsonObject line = new JsonObject();
        line.add("result", result);
        return line;
    }
}
