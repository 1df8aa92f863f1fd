//! The credentials file from outside, when something happens to it: it is lost, cut short, written
//! slowly, or open to others. Nobody gets in by any of these, and nobody who is in is put out by a
//! file that is only being written.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Output,
};

use prelude_bridge::client::{Client, Error, Item, Notice, Options, Request, Start, Subscription};
use tokio_stream::StreamExt as _;

use crate::{
    access::{reason_of, token},
    cli::{program, stderr, stdout},
    support::{Bridge, SOON, Setup, certificates::Authority, item, sender::eventually},
    tls::Secured as _,
};

fn file(bridge: &Bridge) -> PathBuf {
    bridge.data_dir().join("credentials.toml")
}

/// A client of a bridge in plain text, which shows this token if any.
async fn client(bridge: &Bridge, token: Option<&str>) -> Client {
    let mut options = Options::new(format!("http://{}", bridge.addresses.grpc));
    if let Some(token) = token {
        options = options.token(token);
    }
    Client::connect(&options).await.unwrap()
}

async fn refusal(bridge: &Bridge, token: Option<&str>) -> String {
    let refused = client(bridge, token).await.range().await;
    reason_of(&refused.unwrap_err()).to_owned()
}

async fn doctor(bridge: &Bridge) -> Output {
    let mut command = bridge.command_of("doctor");
    tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_lost_its_credentials_lets_nobody_in_until_that_is_said() {
    let mut bridge = Bridge::start().await;
    assert!(client(&bridge, None).await.range().await.is_ok());
    assert!(bridge.terminate().await.success());
    let shown = token(&bridge.data_dir(), &["billing"]);
    bridge.restart().await;
    assert_eq!(refusal(&bridge, None).await, "TOKEN_INVALID");
    assert!(bridge.terminate().await.success());

    let text = fs::read(file(&bridge)).unwrap();
    fs::remove_file(file(&bridge)).unwrap();
    bridge.restart().await;
    assert_eq!(refusal(&bridge, None).await, "TOKEN_INVALID");
    assert_eq!(refusal(&bridge, Some(&shown)).await, "TOKEN_INVALID");
    let said = bridge.stderr();
    let said = said.lines().filter(|line| line.contains("is missing"));
    assert_eq!(said.filter(|line| line.contains("ERROR")).count(), 1);
    let ready = bridge.admin("/readyz").await;
    assert_eq!(ready.status, 200, "deliveries are taken all the same");
    for said in [ready.text(), stdout(&doctor(&bridge).await)] {
        for part in ["is missing", "token create", "allow_anonymous"] {
            assert!(said.contains(part), "{part} is not in: {said}");
        }
    }
    // Deliveries go on.
    bridge
        .append(&[item("evt_1", "user.created", "usr_1")])
        .await;
    assert!(bridge.terminate().await.success());

    let mut command = bridge.command();
    command.arg("--allow-anonymous");
    bridge.run(command).await;
    assert!(client(&bridge, None).await.range().await.is_ok());
    assert!(bridge.terminate().await.success());

    bridge.restart().await;
    assert_eq!(refusal(&bridge, None).await, "TOKEN_INVALID");
    // The same file again, while it runs.
    fs::write(file(&bridge), text).unwrap();
    set_mode(&file(&bridge), 0o600);
    eventually(async || client(&bridge, Some(&shown)).await.range().await.ok()).await;
    assert!(!bridge.admin("/readyz").await.text().contains("missing"));
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credentials_file_that_is_not_named_any_more_is_missed_too() {
    let mut bridge = Setup::default().prepare();
    let elsewhere = tempfile::tempdir().unwrap();
    let named = elsewhere.path().join("who.toml");
    let command = |bridge: &Bridge| {
        let mut command = bridge.command();
        command.env("PRELUDE_BRIDGE_CREDENTIALS_FILE", &named);
        command
    };
    // A file that never was is nobody's permission either.
    bridge.run(command(&bridge)).await;
    assert_eq!(refusal(&bridge, None).await, "TOKEN_INVALID");
    fs::write(&named, "[end]\n").unwrap();
    eventually(async || bridge.stderr().contains("credentials loaded").then_some(())).await;
    assert!(bridge.terminate().await.success());
    bridge.restart().await;
    assert_eq!(refusal(&bridge, None).await, "TOKEN_INVALID");
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credentials_file_of_json_web_tokens_alone_is_remembered() {
    let jwks = tempfile::tempdir().unwrap();
    let path = jwks.path().join("jwks.json");
    fs::write(&path, crate::support::jwks(&crate::support::KEY)).unwrap();
    let mut bridge = Setup::default().prepare();
    let mut command = bridge.command();
    command
        .env("PRELUDE_BRIDGE_JWT_JWKS_FILE", &path)
        .env("PRELUDE_BRIDGE_JWT_ISSUER", "issuer")
        .env("PRELUDE_BRIDGE_JWT_AUDIENCE", "bridge");
    bridge.run(command).await;
    assert_eq!(refusal(&bridge, None).await, "TOKEN_INVALID");
    assert!(bridge.terminate().await.success());
    bridge.restart().await;
    assert_eq!(refusal(&bridge, None).await, "TOKEN_INVALID");
    bridge.finish().await;
}

/// The next event of a subscription that must not have been interrupted.
pub(crate) async fn next_event(subscription: &mut Subscription) -> String {
    loop {
        let item = tokio::time::timeout(SOON, subscription.next()).await;
        match item.unwrap().unwrap().unwrap() {
            Item::Event(event) => return event.id,
            Item::Notice(Notice::Reconnecting { error, .. }) => unreachable!("{error}"),
            Item::Notice(_) => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_cut_anywhere_revokes_nobody_and_widens_nothing() {
    let mut bridge = Setup::default().prepare();
    let data_dir = bridge.data_dir();
    let all = token(&data_dir, &["all"]);
    let narrow = token(&data_dir, &["narrow", "--type", "user.created"]);
    bridge.restart().await;
    let mut streams = Vec::new();
    for token in [&all, &narrow] {
        let client = client(&bridge, Some(token)).await;
        streams.push(client.subscribe(Request::new().start(Start::Earliest)));
    }
    let mut number = 0;
    let mut goes_on = async |bridge: &Bridge| {
        number += 1;
        let id = format!("evt_{number}");
        bridge.append(&[item(&id, "user.created", "usr_1")]).await;
        for stream in &mut streams {
            assert_eq!(next_event(stream).await, id);
        }
        let client = client(bridge, Some(&narrow)).await;
        let mut beyond = client.subscribe(Request::new().types(["user.deleted"]));
        let refused = loop {
            match beyond.next().await.unwrap() {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(reason_of(&refused), "TYPE_FORBIDDEN");
    };
    goes_on(&bridge).await;

    let text = fs::read(file(&bridge)).unwrap();
    let refusals = || bridge.stderr().matches("are not taken over").count();
    // Where it stays for so long that it is told, between any two of its lines of sections.
    let whole = String::from_utf8(text.clone()).unwrap();
    let sections = whole.find("\n[[credentials]]").unwrap();
    let lines = whole.match_indices('\n').map(|(at, _)| at + 1);
    let cuts = lines.filter(|at| *at > sections && *at < text.len());
    for cut in cuts.chain([0]) {
        let before = refusals();
        fs::write(file(&bridge), &text[..cut]).unwrap();
        eventually(async || (refusals() > before).then_some(())).await;
        goes_on(&bridge).await;
    }
    // And every length for a moment.
    for cut in 0..text.len() {
        fs::write(file(&bridge), &text[..cut]).unwrap();
    }
    goes_on(&bridge).await;

    fs::write(file(&bridge), &text).unwrap();
    eventually(async || {
        let page = bridge.admin("/readyz").await.text();
        (!page.contains("warning")).then_some(())
    })
    .await;
    goes_on(&bridge).await;
    assert!(!bridge.stderr().contains("count as revoked"));
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_names_no_types_or_no_apps_gets_nothing() {
    let mut bridge = Setup::default().prepare();
    let data_dir = bridge.data_dir();
    let shown = token(&data_dir, &["one"]);
    let text = fs::read_to_string(file(&bridge)).unwrap();
    let (header, entry) = text.split_at(text.find("\n[[credentials]]").unwrap());
    let all = ["types = \"all\"\n", "apps = \"all\"\n"];
    assert!(all.iter().all(|line| entry.contains(line)), "{text}");
    for (line, reason) in all.into_iter().zip(["TYPE_FORBIDDEN", "APP_FORBIDDEN"]) {
        fs::write(
            file(&bridge),
            format!("{header}{}", entry.replace(line, "")),
        )
        .unwrap();
        bridge.restart_elsewhere().await;
        let client = client(&bridge, Some(&shown)).await;
        let mut stream = client.subscribe(Request::new());
        let refused: Error = loop {
            match stream.next().await.unwrap() {
                Ok(Item::Event(event)) => unreachable!("{event:?}"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(reason_of(&refused), reason);
        let said = [bridge.stderr(), stdout(&doctor(&bridge).await)];
        for said in said {
            assert!(said.contains("`one` has no"), "{said}");
        }
        assert!(bridge.terminate().await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_can_write_keeps_a_bridge_from_starting() {
    let mut bridge = Bridge::start().await;
    assert!(bridge.terminate().await.success());
    token(&bridge.data_dir(), &["one"]);
    let data_dir = bridge.data_dir();
    let home = data_dir.parent().unwrap().to_owned();
    for (path, mode, doctor_says_it) in [
        (data_dir.clone(), 0o777, true),
        (data_dir.clone(), 0o770, true),
        (file(&bridge), 0o666, true),
        (data_dir.join("events-00001"), 0o620, true),
        (home.join("token.txt"), 0o666, true),
        (home.join("jwks.json"), 0o664, true),
    ] {
        let before = fs::metadata(&path).unwrap().permissions().mode();
        set_mode(&path, mode);
        let mut command = bridge.command();
        let refused = tokio::task::spawn_blocking(move || command.output().unwrap());
        let refused = tokio::time::timeout(SOON, refused).await.unwrap().unwrap();
        let said = stderr(&refused);
        assert_eq!(refused.status.code(), Some(2), "{path:?} {said}");
        assert!(said.contains("chmod go-w"), "{path:?} {said}");
        let examined = doctor(&bridge).await;
        let said = stdout(&examined);
        assert_eq!(
            said.contains("chmod go-w"),
            doctor_says_it,
            "{path:?} {said}"
        );
        assert_eq!(examined.status.code(), Some(1));
        set_mode(&path, before & 0o777);
    }
    // A file of another user, whom root, who runs this, can name, and who could change it any time.
    if rustix::process::geteuid().is_root() {
        for path in [file(&bridge), home.join("token.txt"), data_dir.clone()] {
            std::os::unix::fs::chown(&path, Some(1000), None).unwrap();
            let mut command = bridge.command();
            let refused = tokio::task::spawn_blocking(move || command.output().unwrap());
            let refused = tokio::time::timeout(SOON, refused).await.unwrap().unwrap();
            assert_eq!(refused.status.code(), Some(2), "{path:?}");
            assert!(stderr(&refused).contains("chown 0"), "{path:?}");
            // Root may look after the files of the user that a bridge runs as.
            let listed = program(&["token", "list"])
                .arg("--data-dir")
                .arg(&data_dir)
                .output()
                .unwrap();
            assert!(listed.status.success(), "{}", stderr(&listed));
            std::os::unix::fs::chown(&path, Some(0), None).unwrap();
        }
    }
    bridge.restart().await;
    // What can be read by everybody is only pointed out.
    assert!(bridge.stderr().contains("chmod o-r"), "{}", bridge.stderr());
    set_mode(&file(&bridge), 0o622);
    eventually(async || bridge.stderr().contains("chmod go-w").then_some(())).await;
    let said = bridge.stderr();
    assert!(said.contains("those before stay in force"), "{said}");
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_of_a_certificate_counts_only_as_the_kind_that_it_is() {
    const URI: &str = "spiffe://example.com/billing";
    let authority = Authority::new();
    let setup = Setup::default()
        .secured("grpc", &authority.server("server"))
        .asking(&authority);
    let mut bridge = setup.prepare();
    let data_dir = bridge.data_dir();
    for (name, certificate) in [
        ("uri", URI),
        ("dns", "billing.example.com"),
        ("email", "email:billing@example.com"),
        ("cn", "cn:named"),
        ("bare", "bare"),
    ] {
        token(&data_dir, &[name, "--certificate", certificate]);
    }
    bridge.restart().await;
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    let url = format!("https://{}", bridge.addresses.grpc);
    let range = async |file: &str, common: &str, other: Option<&str>| {
        let issued = authority.client_called(file, common, other);
        let options = Options::new(&url)
            .ca_certificate(read(&authority.certificate()))
            .client_certificate(read(&issued.certificate), read(&issued.key));
        let client = Client::connect(&options).await.unwrap();
        client.range().await.map(drop)
    };
    let uri = format!("URI:{URI}");
    for (index, (common, other)) in [
        ("x", Some(uri.as_str())),
        ("x", Some("DNS:Billing.Example.com")),
        ("x", Some("email:billing@example.com")),
        ("named", None),
    ]
    .into_iter()
    .enumerate()
    {
        let served = range(&format!("good-{index}"), common, other).await;
        assert!(served.is_ok(), "{common} {other:?}: {served:?}");
    }
    for (index, (common, other)) in [
        (URI, None),
        (URI, Some("DNS:other.example.com")),
        ("billing.example.com", None),
        ("billing@example.com", None),
        ("x", Some("DNS:named")),
        ("x", Some("URI:billing.example.com")),
        ("x", Some("email:spiffe@example.com")),
        ("named", Some("DNS:other.example.com")),
        ("bare", None),
    ]
    .into_iter()
    .enumerate()
    {
        let refused = range(&format!("bad-{index}"), common, other).await;
        let error = refused.expect_err(common);
        assert_eq!(reason_of(&error), "TOKEN_INVALID", "{common} {other:?}");
        let is_told = error.to_string().contains("`cn:NAME`");
        assert_eq!(is_told, other.is_none(), "{error}");
    }
    bridge.finish().await;
}
