//! Sources of kind verify and notify beside apps, from outside: one log and one order, their keys in PEM
//! files, and what is said to deliveries that were meant for another path.

use std::{fs, path::Path, process::Command, sync::LazyLock};

use prelude_bridge::{
    client::{Client, Error, Item, Options, Request as Subscribe, Start, Stop},
    simulator::{SigningKey, keys::SignatureStyle},
};
use serde::Deserialize;
use serde_json::Value;
use tokio_stream::StreamExt as _;

use crate::{
    access::token,
    cli::{program, run, stderr, stdout},
    signatures::{data, header, openssl, openssl_sign},
    support::{
        APP, Answer, Bridge, KEY, OTHER_KEY, Request, Setup, item, key, reader,
        sender::{Delivery, eventually},
    },
    tools::python,
};

/// The key of Verify and Notify, which share one.
pub(crate) static SHARED_KEY: LazyLock<SigningKey> = LazyLock::new(|| key("test-key-3072"));

/// The public key of a file of `tests/data/keys`, as openssl writes it.
fn public_pem(name: &str, form: &str) -> String {
    let private = format!("{}/tests/data/keys/{name}.pem", env!("CARGO_MANIFEST_DIR"));
    let arguments = match form {
        "PKCS#1" => vec!["rsa", "-in", &private, "-RSAPublicKey_out"],
        _ => vec!["pkey", "-in", &private, "-pubout"],
    };
    let output = Command::new("openssl").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output)
}

const SOURCES: &str = "[[sources]]\nid = \"calls\"\nkind = \"verify\"\npem_file = \"shared.pem\"\n\
                       [[sources]]\nid = \"messages\"\nkind = \"notify\"\npem_file = \"shared.pem\"\n";

/// Two apps, and a source of each kind.
pub(crate) fn mixed() -> Setup {
    let pem = public_pem("test-key-3072", "SPKI");
    Setup::default().section(SOURCES).file("shared.pem", pem)
}

/// An event of Verify as its documentation shows it, with this id.
fn attempt(id: &str) -> String {
    let now = jiff::Timestamp::now();
    format!(
        r#"{{"id":"{id}","type":"verify.attempt","payload":{{"verification_id":"vrf_1","id":"att_1",
            "time":"{now}","price":{{"amount":0.009,"currency":"EUR"}},
            "target":{{"type":"phone_number","value":"+12025550142"}}}},"created_at":"{now}"}}"#
    )
}

/// One of Notify.
fn message(id: &str) -> String {
    let now = jiff::Timestamp::now();
    format!(
        r#"{{"id":"{id}","type":"transactional.message.created","payload":{{"id":"tx_1",
            "to":"+12025550142","fee":{{"amount":"0.009","currency":"EUR"}},"correlation_id":"corr_1"}},
            "created_at":"{now}"}}"#
    )
}

fn sign(key: &SigningKey, body: &str) -> String {
    key.sign(body.as_bytes(), SignatureStyle::default())
        .unwrap()
}

async fn post(bridge: &Bridge, source: &str, body: &str, signature: &str) -> Answer {
    Request::post(&format!("/webhooks/{source}"), body.as_bytes())
        .header("X-Webhook-Signature", signature)
        .send(bridge.addresses.webhook)
        .await
        .unwrap()
}

/// Posts with the shared key, and says how many events were new and how many duplicates.
async fn deliver(bridge: &Bridge, source: &str, body: &str) -> (u64, u64) {
    let answer = post(bridge, source, body, &sign(&SHARED_KEY, body)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer: Value = serde_json::from_str(&answer.text()).unwrap();
    let count = |name: &str| answer[name].as_u64().unwrap();
    (count("accepted"), count("duplicates"))
}

/// The status and code of a refusal.
fn refusal(answer: &Answer) -> (u16, String) {
    let body: Value = serde_json::from_str(&answer.text()).unwrap();
    (
        answer.status,
        body["error"]["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
    )
}

/// The ids that a subscriber with this token gets up to the head, or why it gets none.
async fn ids_for(bridge: &Bridge, token: &str, apps: &[&str]) -> Result<Vec<String>, String> {
    let url = format!("http://{}", bridge.addresses.grpc);
    let client = Client::connect(&Options::new(url).token(token))
        .await
        .unwrap();
    let request = Subscribe::new()
        .start(Start::Earliest)
        .stop(Stop::Head)
        .app_ids(apps.iter().copied());
    let mut stream = client.subscribe(request);
    let mut ids = Vec::new();
    while let Some(next) = stream.next().await {
        match next {
            Ok(Item::Event(event)) => ids.push(event.id),
            Ok(_) => {}
            Err(Error::Refused { reason, .. }) => return Err(reason.unwrap()),
            Err(error) => unreachable!("{error}"),
        }
    }
    Ok(ids)
}

#[tokio::test(flavor = "multi_thread")]
async fn apps_and_sources_share_one_order_and_a_credential_sees_its_own() {
    let mut bridge = mixed().prepare();
    let tokens = [
        &["calls", "--app", "calls"][..],
        &["app", "--app", APP],
        &["all"],
    ]
    .map(|arguments| token(&bridge.data_dir(), arguments));
    bridge.restart().await;
    bridge
        .append(&[item("evt_1", "user.created", "usr_1")])
        .await;
    assert_eq!(deliver(&bridge, "calls", &attempt("evt_2")).await, (1, 0));
    assert_eq!(
        deliver(&bridge, "messages", &message("evt_3")).await,
        (1, 0)
    );
    bridge
        .append(&[item("evt_4", "user.created", "usr_1")])
        .await;
    // An id counts within its source.
    assert_eq!(deliver(&bridge, "calls", &attempt("evt_1")).await, (1, 0));

    let [calls, app, all] = &tokens;
    let everything = ["evt_1", "evt_2", "evt_3", "evt_4", "evt_1"];
    assert_eq!(ids_for(&bridge, all, &[]).await.unwrap(), everything);
    assert_eq!(
        ids_for(&bridge, all, &["messages"]).await.unwrap(),
        ["evt_3"]
    );
    assert_eq!(
        ids_for(&bridge, calls, &[]).await.unwrap(),
        ["evt_2", "evt_1"]
    );
    assert_eq!(
        ids_for(&bridge, app, &[]).await.unwrap(),
        ["evt_1", "evt_4"]
    );
    for (token, other) in [(calls, "messages"), (calls, APP), (app, "calls")] {
        let refused = ids_for(&bridge, token, &[other]).await;
        assert_eq!(refused, Err("APP_FORBIDDEN".to_owned()), "{other}");
    }
    for id in [APP, "calls", "messages"] {
        let keys = bridge
            .metric(&format!("prelude_bridge_keys_usable{{app=\"{id}\"}}"))
            .await;
        assert_eq!(keys, Some(1.0), "{id}");
        let page = bridge.admin("/readyz").await.text();
        assert!(page.contains(&format!("\"app\":\"{id}\"")), "{page}");
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_of_a_single_event_is_a_duplicate_also_after_a_restart() {
    let mut bridge = mixed().start().await;
    let body = format!("\n {}\n", attempt("evt_1"));
    assert_eq!(deliver(&bridge, "calls", &body).await, (1, 0));
    assert_eq!(deliver(&bridge, "calls", &body).await, (0, 1));
    bridge.kill();
    bridge.restart().await;
    assert_eq!(deliver(&bridge, "calls", body.trim()).await, (0, 1));
    let [event] = reader::log(&bridge).await.try_into().unwrap();
    assert_eq!((&*event.id, &*event.app_id), ("evt_1", "calls"));
    assert_eq!(event.r#type, "verify.attempt");
    let server = format!("http://{}", bridge.addresses.grpc);
    let whole = run(&[
        "tail", "--from", "earliest", "--count", "1", "--output", "raw", "--server", &server,
    ]);
    assert_eq!(
        stdout(&whole).trim_end_matches('\n'),
        body.trim(),
        "{}",
        stderr(&whole)
    );
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_for_another_path_is_refused_and_the_log_says_where_it_belongs() {
    let bridge = mixed().start().await;
    let batch = Delivery::of(&[item("evt_1", "user.created", "usr_1")]).body;
    let batch = str::from_utf8(&batch).unwrap();
    let (call, text) = (attempt("evt_2"), message("evt_3"));
    let (call, text) = (call.as_str(), text.as_str());
    let forged = key_of_nobody();
    for (path, body, key, expected) in [
        // The right key and the wrong path.
        ("calls", batch, &*SHARED_KEY, (422, "body_is_batch")),
        (APP, call, &*KEY, (422, "body_is_single_event")),
        ("calls", text, &*SHARED_KEY, (422, "event_of_other_product")),
        (
            "messages",
            call,
            &*SHARED_KEY,
            (422, "event_of_other_product"),
        ),
        // The key of another source.
        ("calls", batch, &*KEY, (401, "signature_mismatch")),
        (APP, call, &*SHARED_KEY, (401, "signature_mismatch")),
        ("messages", text, &*OTHER_KEY, (401, "signature_mismatch")),
        // A key of nobody.
        ("messages", text, &forged, (401, "signature_mismatch")),
        ("nobody", call, &*SHARED_KEY, (404, "app_unknown")),
    ] {
        let answer = post(&bridge, path, body, &sign(key, body)).await;
        let (status, code) = refusal(&answer);
        assert_eq!((status, code.as_str()), expected, "{path}");
    }
    // Who sends something forged learns nothing of other keys.
    let answers = [&*KEY, &forged].map(|key| sign(key, text));
    let known = post(&bridge, "messages", text, &answers[0]).await;
    let unknown = post(&bridge, "messages", text, &answers[1]).await;
    assert_eq!(
        (known.status, known.text()),
        (unknown.status, unknown.text())
    );
    for hint in [APP, "calls or messages", "another1"] {
        let hint = format!("a key of {hint} did");
        let is_logged = async || bridge.stderr().contains(&hint).then_some(());
        eventually(is_logged).await;
    }
    assert_eq!(bridge.head().await, 0);
    let answer = Request::get("/webhooks/calls")
        .send(bridge.addresses.webhook)
        .await
        .unwrap();
    assert_eq!(refusal(&answer), (405, "challenge_unexpected".to_owned()));
    bridge.finish().await;
}

fn key_of_nobody() -> SigningKey {
    SigningKey::generate(2048).unwrap()
}

/// Public keys and signatures of others than us: the PEM of a key, and its signature over a body.
struct Foreign {
    pem: String,
    body: String,
    signature: String,
}

fn of_openssl(directory: &Path) -> Vec<Foreign> {
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let (private, public, body, signed) = (path("k"), path("k.pem"), path("body"), path("sig"));
    let text = attempt("evt_openssl");
    fs::write(&body, &text).unwrap();
    openssl(&["genpkey", "-quiet", "-algorithm", "RSA", "-out", &private]);
    let mut foreign = Vec::new();
    for (salt, form) in [
        (0, "-pubout"),
        (20, "-RSAPublicKey_out"),
        (32, "-pubout"),
        (222, "-pubout"),
    ] {
        openssl(&["rsa", "-in", &private, form, "-out", &public]);
        openssl_sign(&private, salt, &body, &signed);
        foreign.push(Foreign {
            pem: fs::read_to_string(&public).unwrap(),
            body: text.clone(),
            signature: header(&fs::read(&signed).unwrap()),
        });
    }
    foreign
}

fn of_python(directory: &Path) -> Vec<Foreign> {
    #[derive(Deserialize)]
    struct Record {
        pem: String,
        signature: String,
    }
    let (text, path) = (attempt("evt_python"), directory.join("body"));
    fs::write(&path, &text).unwrap();
    let output = python().arg(data("sign.py")).arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let lines = stdout(&output);
    let records = lines
        .lines()
        .map(|line| serde_json::from_str::<Record>(line).unwrap());
    let foreign = records.map(|record| Foreign {
        pem: record.pem,
        body: text.clone(),
        signature: record.signature,
    });
    foreign.collect()
}

/// Made once by `tests/data/signatures/go/main.go`.
fn of_go() -> Vec<Foreign> {
    let vector: Value = serde_json::from_slice(&fs::read(data("go-single.json")).unwrap()).unwrap();
    let text = |name: &str| vector[name].as_str().unwrap().to_owned();
    let signatures = vector["signatures"].as_object().unwrap().values();
    let foreign = signatures.map(|signature| Foreign {
        pem: text("pem"),
        body: text("body"),
        signature: signature.as_str().unwrap().to_owned(),
    });
    foreign.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_of_openssl_python_and_go_verify_with_keys_in_pem_files() {
    let directory = tempfile::tempdir().unwrap();
    let makers = [
        ("openssl", of_openssl(directory.path()), 4),
        ("python", of_python(directory.path()), 12),
        ("go", of_go(), 3),
    ];
    let mut setup = Setup::default();
    for (maker, foreign, _) in &makers {
        let names: Vec<String> = (0..foreign.len())
            .map(|index| format!("{maker}-{index}.pem"))
            .collect();
        let list = names.join("\", \"");
        setup = setup.section(&format!(
            "[[sources]]\nid = \"{maker}\"\nkind = \"verify\"\npem_files = [\"{list}\"]\n"
        ));
        for (name, foreign) in names.iter().zip(foreign) {
            setup = setup.file(name, foreign.pem.clone());
        }
    }
    let bridge = setup.start().await;
    for (maker, foreign, count) in &makers {
        assert_eq!(foreign.len(), *count, "{maker}");
        for (
            index,
            Foreign {
                body, signature, ..
            },
        ) in foreign.iter().enumerate()
        {
            let answer = post(&bridge, maker, body, signature).await;
            let accepted = u8::from(index == 0);
            let expected = format!(r#"{{"accepted":{accepted},"duplicates":{}}}"#, 1 - accepted);
            assert_eq!(
                (answer.status, answer.text()),
                (200, expected),
                "{maker} {index}"
            );
            let damaged = body.replace("att_1", "att_2");
            let answer = post(&bridge, maker, &damaged, signature).await;
            assert_eq!(answer.status, 401, "{maker} {index}");
        }
    }
    assert_eq!(bridge.head().await, 3);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_replaced_by_a_second_pem_block_without_a_restart() {
    let old = public_pem("test-key-2048-a", "SPKI");
    let new = public_pem("test-key-2048-b", "PKCS#1");
    let section = "[[sources]]\nid = \"calls\"\nkind = \"verify\"\npem_file = \"keys.pem\"\n";
    let bridge = Setup::default()
        .section(section)
        .file("keys.pem", old.clone())
        .start()
        .await;
    let send = async |id: &str, key: &SigningKey| {
        let body = attempt(id);
        post(&bridge, "calls", &body, &sign(key, &body))
            .await
            .status
    };
    assert_eq!(send("evt_1", &KEY).await, 200);
    // The first delivery with the new key has the file read again.
    fs::write(bridge.path("keys.pem"), format!("{old}{new}")).unwrap();
    assert_eq!(send("evt_2", &OTHER_KEY).await, 200);
    assert_eq!(send("evt_3", &KEY).await, 200);
    // What is no key changes nothing, and is logged.
    let private = format!(
        "{}/tests/data/keys/test-key-2048-b.pem",
        env!("CARGO_MANIFEST_DIR")
    );
    fs::copy(private, bridge.path("keys.pem")).unwrap();
    let is_logged = async || bridge.stderr().contains("is a private key").then_some(());
    eventually(is_logged).await;
    assert_eq!(send("evt_4", &KEY).await, 200);
    fs::write(bridge.path("keys.pem"), new).unwrap();
    eventually(async || (send("evt_1", &KEY).await == 401).then_some(())).await;
    assert_eq!(send("evt_5", &OTHER_KEY).await, 200);
    bridge.finish().await;
}

#[test]
fn a_pem_file_that_is_no_public_rsa_key_is_refused_with_its_reason() {
    let bridge = mixed().prepare();
    let path = |name: &str| bridge.path(name).to_str().unwrap().to_owned();
    let config = path("bridge.toml");
    let check = || program(&["config", "check", &config]).output().unwrap();
    let good = check();
    assert!(good.status.success(), "{}", stderr(&good));
    let said = stdout(&good);
    assert!(
        said.contains("sources: calls (verify), messages (notify)"),
        "{said}"
    );

    let (rsa, ec, made) = (path("rsa"), path("ec"), path("shared.pem"));
    openssl(&["genpkey", "-quiet", "-algorithm", "RSA", "-out", &rsa]);
    let curve = ["-pkeyopt", "ec_paramgen_curve:P-256"];
    openssl(
        &[
            &["genpkey", "-quiet", "-algorithm", "EC", "-out", &ec][..],
            &curve,
        ]
        .concat(),
    );
    let short = [
        "genpkey",
        "-quiet",
        "-algorithm",
        "RSA",
        "-pkeyopt",
        "rsa_keygen_bits:1024",
    ];
    let subject = ["-subj", "/CN=prelude", "-days", "2"];
    for (arguments, reason) in [
        (
            vec!["pkey", "-in", &ec, "-pubout", "-out", &made],
            "is of another type than RSA",
        ),
        (vec!["pkey", "-in", &ec, "-out", &made], "is a private key"),
        (vec!["pkey", "-in", &rsa, "-out", &made], "is a private key"),
        (
            vec!["rsa", "-in", &rsa, "-traditional", "-out", &made],
            "is a private key",
        ),
        (
            vec![
                "rsa", "-in", &rsa, "-pubout", "-outform", "DER", "-out", &made,
            ],
            "has no PEM block",
        ),
        ([&short[..], &["-out", &made]].concat(), "is a private key"),
        (
            [
                &["req", "-x509", "-new", "-key", &rsa, "-out", &made][..],
                &subject,
            ]
            .concat(),
            "is a certificate: extract its key with openssl x509",
        ),
        (
            [
                &["req", "-new", "-key", &rsa, "-out", &made][..],
                &subject[..2],
            ]
            .concat(),
            "is no public key",
        ),
    ] {
        openssl(&arguments);
        let refused = check();
        let said = stderr(&refused);
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(
            said.contains("shared.pem") && said.contains(reason),
            "{reason}: {said}"
        );
        assert!(
            said.contains("calls") && said.contains("messages"),
            "{said}"
        );
    }
    for form in ["-pubout", "-RSAPublicKey_out"] {
        openssl(&["rsa", "-in", &rsa, form, "-out", &made]);
        let good = check();
        assert!(good.status.success(), "{}", stderr(&good));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_source_of_the_environment_serves_without_a_file() {
    let mut bridge = mixed().prepare();
    let mut command = program(&["serve"]);
    command
        .arg("--data-dir")
        .arg(bridge.data_dir())
        .args([
            "--webhook-listen",
            "127.0.0.1:0",
            "--grpc-listen",
            "127.0.0.1:0",
        ])
        .args(["--admin-listen", "127.0.0.1:0", "--log-format", "json"])
        .env("PRELUDE_BRIDGE_SOURCE_ID", "texts")
        .env("PRELUDE_BRIDGE_SOURCE_KIND", "notify")
        .env("PRELUDE_BRIDGE_PEM_FILE", bridge.path("shared.pem"));
    bridge.run(command).await;
    assert_eq!(deliver(&bridge, "texts", &message("evt_1")).await, (1, 0));
    let body = message("evt_2");
    let answer = Request::post("/webhooks", body.as_bytes())
        .header("X-Webhook-Signature", &sign(&SHARED_KEY, &body))
        .send(bridge.addresses.webhook)
        .await
        .unwrap();
    assert_eq!(refusal(&answer), (401, "signature_unverifiable".to_owned()));
    bridge.finish().await;
}

#[test]
fn doctor_and_webhook_know_sources_without_a_token() {
    let bridge = mixed().prepare();
    let config = bridge.path("bridge.toml");
    let mut doctor = program(&["doctor", "--output", "json"]);
    doctor
        .args([
            "--webhook-listen",
            "127.0.0.1:0",
            "--grpc-listen",
            "127.0.0.1:0",
        ])
        .args([
            "--admin-listen",
            "127.0.0.1:0",
            "--url",
            "https://bridge.example/webhooks/calls",
        ])
        .arg("--config")
        .arg(&config)
        .arg("--data-dir")
        .arg(bridge.data_dir());
    let report: Value = serde_json::from_str(&stdout(&doctor.output().unwrap())).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let of = |name: &str, app: &str| {
        let mut checks = checks.iter();
        checks
            .find(|check| check["name"] == name && check["app"] == app)
            .unwrap()
    };
    for source in ["calls", "messages", APP] {
        assert_eq!(of("keys", source)["verdict"], "good", "{report}");
    }
    let skipped = of("public URL", "calls");
    assert_eq!(skipped["verdict"], "skipped", "{report}");
    assert!(
        skipped["found"]
            .as_str()
            .unwrap()
            .contains("no activation challenge"),
        "{report}"
    );

    let setup = program(&[
        "webhook",
        "setup",
        "--url",
        "https://bridge.example/webhooks",
        "--app",
        "calls",
    ])
    .arg("--config")
    .arg(&config)
    .env("PRELUDE_API_TOKEN", "key")
    .output()
    .unwrap();
    assert_eq!(setup.status.code(), Some(2));
    let said = stderr(&setup);
    assert!(
        said.contains("`calls` is a source of kind verify"),
        "{said}"
    );
    assert!(said.contains("callback_url"), "{said}");
}
