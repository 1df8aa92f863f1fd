//! The JSON Parsing Test Suite through the webhook port: what of JSON is taken, and that it is passed on byte
//! for byte.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use prelude_bridge::proto::{PayloadFormat, SubscribeRequest};

use crate::support::{
    APP, Bridge,
    stream::{Received, history},
};

const FILES: &str = include_str!("../data/json-test-suite/files.txt");

/// The files whose names begin so.
fn files(prefix: &str) -> Vec<(String, Vec<u8>)> {
    let small = FILES.lines().map(|line| {
        let (name, content) = line.split_once(' ').unwrap();
        (name.to_owned(), STANDARD.decode(content).unwrap())
    });
    let large = [
        ("n_structure_100000_opening_arrays", "[".repeat(100_000)),
        ("n_structure_open_array_object", "[{\"\":".repeat(50_000)),
    ];
    let large = large.map(|(name, content)| (name.to_owned(), content.into_bytes()));
    let mut files: Vec<_> = small.chain(large).collect();
    files.retain(|(name, _)| name.starts_with(prefix));
    files
}

/// An event with this as its payload.
fn item(name: &str, payload: &[u8]) -> Vec<u8> {
    let front = format!(r#"{{"id":"{name}","type":"test.json","payload":"#);
    [front.as_bytes(), payload, b"}"].concat()
}

fn batch(items: &[Vec<u8>]) -> Vec<u8> {
    let front = format!(r#"{{"app_id":"{APP}","events":["#);
    [front.as_bytes(), &items.join(&b','), b"]}"].concat()
}

/// What the log has of an event, in the order of the log.
async fn raw(bridge: &Bridge) -> Vec<Vec<u8>> {
    let request = SubscribeRequest {
        payload_format: PayloadFormat::Raw.into(),
        ..history()
    };
    let mut client = bridge.client().await;
    let mut stream = Received::subscribe(&mut client, request).await.unwrap();
    stream.end().await.unwrap();
    stream
        .events()
        .map(|event| event.raw_json.to_vec())
        .collect()
}

async fn assert_refused(bridge: &Bridge, name: &str, body: &[u8]) {
    let answer = bridge.post(body).await;
    let text = answer.text();
    assert_eq!(answer.status, 422, "{name}: {text}");
    assert_eq!(answer.json()["error"]["code"], "body_not_json", "{name}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_every_parser_accepts_is_streamed_byte_for_byte() {
    let bridge = Bridge::start().await;
    let files = files("y_");
    assert_eq!(files.len(), 95);
    let mut items: Vec<Vec<u8>> = files.iter().map(|(name, json)| item(name, json)).collect();
    // An item of the list may be any JSON too. It has no space around it.
    let bare = files.iter().map(|(_, json)| json.trim_ascii().to_vec());
    items.extend(bare);
    let answer = bridge.post(&batch(&items)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    // Some files have the same content: without an id, they are one event.
    let mut seen = std::collections::HashSet::new();
    items.retain(|item| seen.insert(item.clone()));
    assert_eq!(raw(&bridge).await, items);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_every_parser_refuses_is_refused_with_its_whole_batch() {
    let bridge = Bridge::start().await;
    let files = files("n_");
    assert_eq!(files.len(), 188);
    let good = item("good", b"{}");
    for (name, json) in &files {
        let body = batch(&[good.clone(), item(name, json), good.clone()]);
        assert_refused(&bridge, name, &body).await;
    }
    assert_eq!(bridge.head().await, 0);
    bridge.append(&[str::from_utf8(&good).unwrap()]).await;
    bridge.finish().await;
}

/// RFC 8259 leaves it open. UTF-8 is needed, without a byte order mark. Everything else passes, as it is:
/// numbers of any size, any depth, and escapes of what is no character.
#[tokio::test(flavor = "multi_thread")]
async fn what_parsers_may_do_as_they_like_with_passes_if_it_is_utf_8() {
    const REFUSED: [&str; 14] = [
        "i_string_UTF-16LE_with_BOM",
        "i_string_UTF-8_invalid_sequence",
        "i_string_UTF8_surrogate_U+D800",
        "i_string_invalid_utf-8",
        "i_string_iso_latin_1",
        "i_string_lone_utf8_continuation_byte",
        "i_string_not_in_unicode_range",
        "i_string_overlong_sequence_2_bytes",
        "i_string_overlong_sequence_6_bytes",
        "i_string_overlong_sequence_6_bytes_null",
        "i_string_truncated-utf-8",
        "i_string_utf16BE_no_BOM",
        "i_string_utf16LE_no_BOM",
        "i_structure_UTF-8_BOM_empty_object",
    ];
    let bridge = Bridge::start().await;
    let files = files("i_");
    assert_eq!(files.len(), 35);
    let (refused, passed): (Vec<_>, Vec<_>) = files
        .into_iter()
        .partition(|(name, _)| REFUSED.contains(&name.as_str()));
    assert_eq!((refused.len(), passed.len()), (14, 21));
    for (name, json) in &refused {
        assert_refused(&bridge, name, &batch(&[item(name, json)])).await;
    }
    let items: Vec<Vec<u8>> = passed.iter().map(|(name, json)| item(name, json)).collect();
    let answer = bridge.post(&batch(&items)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(raw(&bridge).await, items);
    bridge.finish().await;
}
