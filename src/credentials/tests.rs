//! Callers against a file in a temporary directory, and time that is moved by hand.

use std::{fs, path::Path, time::Duration};

use tempfile::TempDir;
use tokio::time::Instant;

use super::*;
use crate::{filter::Spec, net::tls::NameKind};

/// Long enough for a loaded machine, and never waited out when all is well.
const SOON: Duration = Duration::from_secs(30);

/// A credentials file with the bridge that watches it.
struct Scene {
    directory: TempDir,
    file: File,
    credentials: Credentials,
}

impl Scene {
    async fn new(entries: &[&Entry]) -> Self {
        Self::with(entries, Options::default()).await
    }

    async fn with(entries: &[&Entry], options: Options) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = File::new(directory.path().join("credentials.toml"));
        for entry in entries {
            file.add(entry).unwrap();
        }
        let options = Options {
            file: Some(file.path().to_owned()),
            ..options
        };
        let credentials = Credentials::open_with_clock(options, clock())
            .await
            .unwrap();
        Self {
            directory,
            file,
            credentials,
        }
    }

    async fn show(&self, token: &Token) -> Result<Grant, Refusal> {
        show(&self.credentials, token).await
    }

    /// Waits until the file as it is now was looked at.
    async fn settled(&self) {
        let mut state = self.credentials.shared.state.subscribe();
        let before = state.borrow_and_update().status();
        let is_new = |state: &FileState| {
            let status = state.status();
            (status.reloads, status.reloads_refused) != (before.reloads, before.reloads_refused)
        };
        tokio::time::timeout(SOON, state.wait_for(is_new))
            .await
            .unwrap()
            .unwrap();
    }

    /// Changes the file and waits until that was looked at.
    async fn change<T>(&self, change: impl FnOnce(&File) -> T) -> T {
        let settled = self.settled();
        let changed = change(&self.file);
        settled.await;
        changed
    }

    fn write(&self, text: &str) {
        let fresh = self.directory.path().join("fresh");
        fs::write(&fresh, text).unwrap();
        fs::rename(fresh, self.file.path()).unwrap();
    }

    fn text(&self) -> String {
        fs::read_to_string(self.file.path()).unwrap()
    }
}

async fn show(credentials: &Credentials, token: &Token) -> Result<Grant, Refusal> {
    let header = format!("Bearer {}", token.expose());
    let presented = Presented {
        authorization: Some(header.as_bytes()),
        ..Presented::default()
    };
    credentials.authenticate(presented).await
}

/// The time of day as tokio has it, so that a test can move it.
fn clock() -> Clock {
    let (wall, started) = (Timestamp::now(), Instant::now());
    Arc::new(move || wall + started.elapsed())
}

fn token(name: &str) -> (Token, Entry) {
    let token = Token::generate().unwrap();
    let entry = Entry {
        name: name.to_owned(),
        proof: Proof::Token(token.digest()),
        scope: Scope::default(),
        previous: None,
        streams_max: None,
        connections_max: None,
        unsent_bytes_max: None,
        created_at: None,
        expires_at: None,
    };
    (token, entry)
}

fn only(names: &[&str]) -> Allowed {
    Allowed::or_all(names.iter().map(|&name| name.to_owned()).collect())
}

async fn ended(grant: &Grant) -> Ended {
    tokio::time::timeout(SOON, grant.ended()).await.unwrap()
}

async fn is_running(grant: &Grant) -> bool {
    // Polled once: what has ended says so at once.
    let mut wait = std::pin::pin!(grant.ended());
    futures_util::future::poll_immediate(&mut wait)
        .await
        .is_none()
}

#[tokio::test]
async fn a_token_of_the_file_gets_in_with_its_scope() {
    let (token, entry) = token("billing");
    let entry = Entry {
        scope: Scope {
            types: only(&["user.*"]),
            apps: only(&["app_1"]),
        },
        ..entry
    };
    let scene = Scene::new(&[&entry]).await;
    let grant = scene.show(&token).await.unwrap();
    assert_eq!((grant.name(), grant.kind()), ("billing", Kind::Token));
    let narrowed = grant.narrow(Spec::default()).unwrap();
    assert_eq!(
        (narrowed.types, narrowed.app_ids),
        (vec!["user.*".to_owned()], vec!["app_1".to_owned()])
    );
    let wanted = Spec {
        app_ids: vec!["app_2".to_owned()],
        ..Spec::default()
    };
    assert_eq!(
        grant.narrow(wanted),
        Err(Forbidden::Apps(vec!["app_2".to_owned()]))
    );
    assert!(is_running(&grant).await);
}

#[tokio::test]
async fn every_refusal_has_its_cause() {
    let (good, entry) = token("good");
    let (expired, old) = token("expired");
    let old = Entry {
        expires_at: Some(Timestamp::now()),
        ..old
    };
    let scene = Scene::new(&[&entry, &old]).await;
    let refusal = async |authorization: Option<&str>, certificate: Option<&str>| {
        let certificate = certificate.map(|name| CertificateName::parse(name).identity().clone());
        let certificate = certificate.as_ref();
        let presented = Presented {
            authorization: authorization.map(str::as_bytes),
            certificate,
            ..Presented::default()
        };
        scene.credentials.authenticate(presented).await.unwrap_err()
    };
    assert_eq!(refusal(None, None).await, Refusal::Missing);
    assert_eq!(refusal(Some(""), None).await, Refusal::Malformed);
    assert_eq!(refusal(Some("Basic abc"), None).await, Refusal::Malformed);
    assert_eq!(refusal(Some(good.expose()), None).await, Refusal::Malformed);
    assert_eq!(refusal(Some("Bearer a.b.c"), None).await, Refusal::Unknown);
    assert_eq!(refusal(None, Some("spiffe://e/1")).await, Refusal::Unknown);
    assert_eq!(
        refusal(None, Some("cn:spiffe://e/1")).await,
        Refusal::UnknownCommonName
    );
    let other = Token::generate().unwrap();
    assert_eq!(scene.show(&other).await.unwrap_err(), Refusal::Unknown);
    assert_eq!(scene.show(&expired).await.unwrap_err(), Refusal::Expired);
    assert!(scene.show(&good).await.is_ok());
}

#[tokio::test]
async fn a_certificate_of_the_file_gets_in_and_a_token_beside_it_decides() {
    let (_, entry) = token("audit");
    let entry = Entry {
        proof: Proof::Certificate(CertificateName::parse("spiffe://e/audit")),
        ..entry
    };
    let scene = Scene::new(&[&entry]).await;
    let identity = Identity::new(NameKind::Uri, "spiffe://e/audit");
    let mut presented = Presented {
        certificate: Some(&identity),
        ..Presented::default()
    };
    let grant = scene.credentials.authenticate(presented).await.unwrap();
    assert_eq!((grant.name(), grant.kind()), ("audit", Kind::Certificate));
    presented.authorization = Some(b"Bearer pb_wrong");
    assert_eq!(
        scene.credentials.authenticate(presented).await.unwrap_err(),
        Refusal::Malformed
    );
}

#[tokio::test]
async fn without_any_credentials_everybody_gets_in_until_there_are_some() {
    let scene = Scene::new(&[]).await;
    assert!(!scene.credentials.is_configured());
    let (token, entry) = token("one");
    let nobody = scene
        .credentials
        .authenticate(Presented::default())
        .await
        .unwrap();
    assert_eq!(
        (nobody.name(), nobody.kind()),
        ("anonymous", Kind::Anonymous)
    );
    assert_eq!(nobody.narrow(Spec::default()), Ok(Spec::default()));
    assert!(
        scene.show(&token).await.is_ok(),
        "what is shown means nothing yet"
    );

    scene.change(|file| file.add(&entry).unwrap()).await;
    assert!(scene.credentials.is_configured());
    assert_eq!(ended(&nobody).await, Ended::Changed);
    let refusal = scene
        .credentials
        .authenticate(Presented::default())
        .await
        .unwrap_err();
    assert_eq!(refusal, Refusal::Missing);
    assert_eq!(scene.show(&token).await.unwrap().name(), "one");
}

#[tokio::test]
async fn who_may_be_anonymous_still_may_not_show_a_wrong_token() {
    let (token, entry) = token("one");
    let options = Options {
        anonymous: true,
        ..Options::default()
    };
    let scene = Scene::with(&[&entry], options).await;
    let identity = Identity::new(NameKind::Uri, "spiffe://e/stranger");
    let stranger = Presented {
        certificate: Some(&identity),
        ..Presented::default()
    };
    for presented in [Presented::default(), stranger] {
        let grant = scene.credentials.authenticate(presented).await.unwrap();
        assert_eq!(grant.kind(), Kind::Anonymous);
    }
    assert_eq!(scene.show(&token).await.unwrap().name(), "one");
    let other = Token::generate().unwrap();
    assert_eq!(scene.show(&other).await.unwrap_err(), Refusal::Unknown);
}

#[tokio::test]
async fn a_bridge_without_credentials_lets_everybody_in() {
    let credentials = Credentials::anonymous();
    assert!(!credentials.is_configured());
    let grant = credentials
        .authenticate(Presented::default())
        .await
        .unwrap();
    assert!(is_running(&grant).await);
    let places: Vec<QuotaSlot> = (0..1000)
        .map(|_| grant.enter(usize::MAX).unwrap())
        .collect();
    assert_eq!(places.len(), 1000);
    credentials.shutdown().await;
}

#[tokio::test]
async fn a_revoked_credential_ends_and_no_other_does() {
    let (revoked, one) = token("one");
    let (other, two) = token("two");
    let scene = Scene::new(&[&one, &two]).await;
    let (revoked_grant, other_grant) = (
        scene.show(&revoked).await.unwrap(),
        scene.show(&other).await.unwrap(),
    );
    let same_grant = scene.show(&revoked).await.unwrap();
    scene.file.remove("one").unwrap();
    assert_eq!(ended(&revoked_grant).await, Ended::Revoked);
    assert_eq!(ended(&same_grant).await, Ended::Revoked);
    assert_eq!(scene.show(&revoked).await.unwrap_err(), Refusal::Unknown);
    assert!(is_running(&other_grant).await);
    assert!(scene.show(&other).await.is_ok());
}

#[tokio::test]
async fn a_credential_that_means_something_else_ends_what_was_granted() {
    let (shown, entry) = token("one");
    let scene = Scene::new(&[&entry]).await;
    for (line, other) in [
        ("types = \"all\"", "types = [\"user.*\"]"),
        ("apps = \"all\"", "apps = [\"a\"]"),
        ("[end]", "streams_max = 1\n[end]"),
    ] {
        let grant = scene.show(&shown).await.unwrap();
        let text = scene.text();
        let (start, rest) = text.split_at(text.find("\n[[").unwrap());
        let text = format!("{start}{}", rest.replace(line, other));
        scene.change(|_| scene.write(&text)).await;
        assert_eq!(ended(&grant).await, Ended::Changed, "{other}");
        assert!(
            scene.show(&shown).await.is_ok(),
            "the same token gets the new"
        );
    }
    // Another token under the same name is another credential.
    let grant = scene.show(&shown).await.unwrap();
    let (_, other) = token("one");
    scene
        .change(|_| scene.write(&edit::with("", &other).unwrap()))
        .await;
    assert_eq!(ended(&grant).await, Ended::Revoked);
}

#[tokio::test]
async fn what_means_the_same_goes_on_with_its_quota() {
    let (shown, entry) = token("one");
    let entry = Entry {
        streams_max: Some(1),
        ..entry
    };
    let scene = Scene::new(&[&entry]).await;
    let grant = scene.show(&shown).await.unwrap();
    let place = grant.enter(usize::MAX).unwrap();
    let (_, other) = token("two");
    scene.change(|file| file.add(&other).unwrap()).await;
    let created = "created_at = 2026-01-01T00:00:00Z\n[end]";
    let text = scene.text().replace("\n[end]", &format!("\n{created}"));
    assert_ne!(text, scene.text());
    let text = format!("# a comment\n{text}");
    scene.change(|_| scene.write(&text)).await;
    assert!(is_running(&grant).await);
    let again = scene.show(&shown).await.unwrap();
    assert_eq!(
        again.enter(usize::MAX).unwrap_err(),
        QuotaReached::Streams { streams_max: 1 }
    );
    drop(place);
    assert!(again.enter(usize::MAX).is_ok());
}

#[tokio::test]
async fn a_quota_counts_all_streams_of_a_credential() {
    let (shown, entry) = token("one");
    let entry = Entry {
        streams_max: Some(2),
        ..entry
    };
    let scene = Scene::new(&[&entry]).await;
    let (one, two) = (
        scene.show(&shown).await.unwrap(),
        scene.show(&shown).await.unwrap(),
    );
    let first = one.enter(usize::MAX).unwrap();
    let _second = two.enter(usize::MAX).unwrap();
    let refused = one.clone().enter(usize::MAX).unwrap_err();
    assert!(refused.to_string().contains("2 streams open"), "{refused}");
    drop(first);
    assert!(two.enter(usize::MAX).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_credential_ends_when_its_time_is_over() {
    let (shown, entry) = token("one");
    let entry = Entry {
        expires_at: Some(Timestamp::now() + Duration::from_secs(90 * 86_400)),
        ..entry
    };
    let scene = Scene::new(&[&entry]).await;
    let grant = scene.show(&shown).await.unwrap();
    tokio::time::advance(Duration::from_secs(90 * 86_400 - 60)).await;
    assert!(is_running(&grant).await);
    assert!(scene.show(&shown).await.is_ok());
    let begun = Instant::now();
    assert_eq!(grant.ended().await, Ended::Expired);
    let waited = begun.elapsed();
    assert!(waited <= Duration::from_secs(61), "{waited:?}");
    assert_eq!(scene.show(&shown).await.unwrap_err(), Refusal::Expired);
}

#[tokio::test(start_paused = true)]
async fn nothing_outlives_the_certificate_that_it_was_shown_with() {
    let (shown, entry) = token("one");
    let (brief, brief_entry) = token("brief");
    let now = Timestamp::now();
    let brief_entry = Entry {
        expires_at: Some(now + Duration::from_secs(100)),
        ..brief_entry
    };
    let scene = Scene::new(&[&entry, &brief_entry]).await;
    let until = async |token: &Token, seconds: u64| {
        let header = format!("Bearer {}", token.expose());
        let presented = Presented {
            authorization: Some(header.as_bytes()),
            certificate_expires_at: Some(now + Duration::from_secs(seconds)),
            ..Presented::default()
        };
        scene.credentials.authenticate(presented).await
    };
    let (long, short) = (until(&shown, 500).await, until(&brief, 500).await);
    let (long, short) = (long.unwrap(), short.unwrap());
    let begun = Instant::now();
    // Whichever ends first.
    assert_eq!(short.ended().await, Ended::Expired);
    assert!(begun.elapsed() <= Duration::from_secs(101));
    assert!(is_running(&long).await);
    assert_eq!(long.ended().await, Ended::Expired);
    assert!(begun.elapsed() <= Duration::from_secs(501));
    assert_eq!(until(&shown, 500).await.unwrap_err(), Refusal::Expired);
    assert!(scene.show(&shown).await.is_ok());
}

#[tokio::test]
async fn a_file_that_goes_wrong_changes_nothing_until_it_is_right_again() {
    let (shown, entry) = token("one");
    let scene = Scene::new(&[&entry]).await;
    let grant = scene.show(&shown).await.unwrap();
    let good = scene.text();
    scene
        .change(|_| scene.write(&format!("{good}typo\n")))
        .await;
    let status = scene.credentials.status();
    assert_eq!((status.credentials, status.reloads_refused), (1, 1));
    let fault = status.fault.unwrap();
    assert!(
        fault.contains("line ") && fault.contains("not valid TOML"),
        "{fault}"
    );
    assert!(is_running(&grant).await);
    assert!(scene.show(&shown).await.is_ok());

    scene.change(|_| scene.write(&good)).await;
    assert_eq!(scene.credentials.status().fault, None);
    assert!(is_running(&grant).await, "the same credential all along");
}

#[tokio::test]
async fn a_file_that_cannot_be_read_changes_nothing() {
    let (shown, entry) = token("one");
    let scene = Scene::new(&[&entry]).await;
    let grant = scene.show(&shown).await.unwrap();
    let good = scene.text();
    // Whoever may read everything, as root, cannot read a directory as a file either.
    scene
        .change(|file| {
            fs::remove_file(file.path()).unwrap();
            fs::create_dir(file.path()).unwrap();
        })
        .await;
    assert!(
        scene
            .credentials
            .status()
            .fault
            .unwrap()
            .contains("cannot be read")
    );
    assert!(is_running(&grant).await);
    scene
        .change(|file| {
            fs::remove_dir(file.path()).unwrap();
            scene.write(&good);
        })
        .await;
    assert_eq!(scene.credentials.status().fault, None);
    assert!(is_running(&grant).await);
}

#[tokio::test]
async fn a_file_that_is_deleted_lets_nobody_in() {
    let (shown, entry) = token("one");
    let scene = Scene::new(&[&entry]).await;
    let grant = scene.show(&shown).await.unwrap();
    scene
        .change(|file| fs::remove_file(file.path()).unwrap())
        .await;
    assert_eq!(ended(&grant).await, Ended::Revoked);
    let fault = scene.credentials.status().fault.unwrap();
    assert!(
        fault.contains("is missing") && fault.contains("allow_anonymous"),
        "{fault}"
    );
    assert!(
        scene.credentials.is_configured(),
        "it does not mean everybody"
    );
    let refusal = scene
        .credentials
        .authenticate(Presented::default())
        .await
        .unwrap_err();
    assert_eq!(refusal, Refusal::Missing);
    assert_eq!(scene.show(&shown).await.unwrap_err(), Refusal::Unknown);
    scene.change(|file| file.add(&entry).unwrap()).await;
    assert!(scene.show(&shown).await.is_ok());
}

#[cfg(unix)]
#[tokio::test]
async fn a_link_that_is_swapped_is_a_change() {
    let (shown, entry) = token("one");
    let scene = Scene::new(&[]).await;
    let directory = scene.directory.path();
    fs::create_dir(directory.join("v1")).unwrap();
    let inner = File::new(directory.join("v1/credentials.toml"));
    inner.add(&entry).unwrap();
    let link = |to: &str| {
        let fresh = directory.join("link");
        std::os::unix::fs::symlink(Path::new(to).join("credentials.toml"), &fresh).unwrap();
        fs::rename(fresh, scene.file.path()).unwrap();
    };
    scene.change(|_| link("v1")).await;
    let grant = scene.show(&shown).await.unwrap();
    fs::create_dir(directory.join("v2")).unwrap();
    fs::write(directory.join("v2/credentials.toml"), "[end]\n").unwrap();
    scene.change(|_| link("v2")).await;
    assert_eq!(ended(&grant).await, Ended::Revoked);
}

#[tokio::test]
async fn a_named_file_counts_as_there_and_a_wrong_one_is_refused_at_the_start() {
    let options = Options {
        file_is_named: true,
        ..Options::default()
    };
    let scene = Scene::with(&[], options).await;
    assert!(scene.credentials.is_configured());
    let refusal = scene
        .credentials
        .authenticate(Presented::default())
        .await
        .unwrap_err();
    assert_eq!(refusal, Refusal::Missing);

    scene.credentials.shutdown().await;
    scene.write("typo\n");
    let options = Options {
        file: Some(scene.file.path().to_owned()),
        ..Options::default()
    };
    let error = Credentials::open(options).await.unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
}

#[tokio::test]
async fn an_empty_file_means_nobody() {
    let (_, entry) = token("one");
    let scene = Scene::new(&[&entry]).await;
    scene.change(|file| file.remove("one").unwrap()).await;
    let options = Options {
        file: Some(scene.file.path().to_owned()),
        ..Options::default()
    };
    let restarted = Credentials::open(options).await.unwrap();
    assert!(restarted.is_configured());
    assert_eq!(
        restarted
            .authenticate(Presented::default())
            .await
            .unwrap_err(),
        Refusal::Missing
    );
}

#[tokio::test]
async fn the_watch_ends_with_the_last_handle_and_on_request() {
    let scene = Scene::new(&[]).await;
    let weak = Arc::downgrade(&scene.credentials.shared);
    let tasks = scene.credentials.tasks.clone();
    drop(scene);
    tokio::time::timeout(SOON, tasks.wait()).await.unwrap();
    assert!(weak.upgrade().is_none());

    let scene = Scene::new(&[]).await;
    tokio::time::timeout(SOON, scene.credentials.shutdown())
        .await
        .unwrap();
    let grant = scene
        .credentials
        .authenticate(Presented::default())
        .await
        .unwrap();
    assert!(is_running(&grant).await, "what is known goes on holding");
}

#[tokio::test]
async fn a_token_is_in_no_debug_output_and_no_refusal() {
    let (shown, entry) = token("one");
    let scene = Scene::new(&[&entry]).await;
    let secret = shown.expose().trim_start_matches("pb_");
    let grant = scene.show(&shown).await.unwrap();
    let place = grant.enter(usize::MAX).unwrap();
    let header = format!("Bearer {}", shown.expose());
    let presented = Presented {
        authorization: Some(header.as_bytes()),
        ..Presented::default()
    };
    let digest = entry.proof.clone();
    let mut seen = format!(
        "{shown:?} {entry:?} {grant:?} {place:?} {presented:?} {:?} {:?} {digest:?}",
        scene.credentials,
        scene.credentials.status(),
    );
    scene.change(|file| file.remove("one").unwrap()).await;
    let refusal = scene.show(&shown).await.unwrap_err();
    seen += &format!("{refusal} {refusal:?} {} {:?}", Ended::Revoked, scene.file);
    assert!(!seen.contains(secret), "{seen}");
    let Proof::Token(digest) = entry.proof else {
        panic!("{seen}");
    };
    assert!(!seen.contains(&digest.to_string()), "{seen}");
    assert!(!scene.text().contains(secret));
}

/// A bridge that is started again and again on one data directory.
struct Restarted {
    directory: TempDir,
}

impl Restarted {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn file(&self) -> File {
        File::new(self.directory.path().join("credentials.toml"))
    }

    fn record(&self) -> Record {
        Record::new(self.directory.path().to_owned())
    }

    fn options(&self) -> Options {
        Options {
            file: Some(self.file().path().to_owned()),
            record: Some(self.record()),
            ..Options::default()
        }
    }

    async fn start(&self) -> Credentials {
        Credentials::open(self.options()).await.unwrap()
    }
}

async fn show_nothing(credentials: &Credentials) -> Result<Grant, Refusal> {
    credentials.authenticate(Presented::default()).await
}

#[tokio::test]
async fn a_file_that_is_gone_after_a_restart_lets_nobody_in() {
    let restarted = Restarted::new();
    let credentials = restarted.start().await;
    assert!(show_nothing(&credentials).await.is_ok());
    assert_eq!(restarted.record().read(), None, "nothing was ever there");

    let (shown, entry) = token("one");
    restarted.file().add(&entry).unwrap();
    let credentials = restarted.start().await;
    assert!(show(&credentials, &shown).await.is_ok());
    let text = fs::read_to_string(restarted.file().path()).unwrap();
    fs::remove_file(restarted.file().path()).unwrap();
    for _ in 0..2 {
        let credentials = restarted.start().await;
        assert!(credentials.is_configured());
        let refusals = (
            show_nothing(&credentials).await.unwrap_err(),
            show(&credentials, &shown).await.unwrap_err(),
        );
        assert_eq!(refusals, (Refusal::Missing, Refusal::Unknown));
        let fault = credentials.status().fault.unwrap();
        for part in ["is missing", "token create", "allow_anonymous"] {
            assert!(fault.contains(part), "{fault}");
        }
    }
    // The way back on purpose.
    let options = Options {
        anonymous: true,
        ..restarted.options()
    };
    let credentials = Credentials::open(options).await.unwrap();
    assert!(show_nothing(&credentials).await.is_ok());
    assert_eq!(credentials.status().fault, None);
    // And the way back from that.
    fs::write(restarted.file().path(), text).unwrap();
    assert!(show(&restarted.start().await, &shown).await.is_ok());
}

#[tokio::test]
async fn credentials_that_appear_while_the_bridge_runs_are_remembered() {
    let restarted = Restarted::new();
    let credentials = restarted.start().await;
    let (shown, entry) = token("one");
    restarted.file().add(&entry).unwrap();
    let mut state = credentials.shared.state.subscribe();
    let loaded = state.wait_for(|state| state.status().credentials == 1);
    tokio::time::timeout(SOON, loaded).await.unwrap().unwrap();
    let record = restarted.record();
    while record.read().is_none() {
        tokio::task::yield_now().await;
    }
    assert!(show(&credentials, &shown).await.is_ok());
    credentials.shutdown().await;
    fs::remove_file(restarted.file().path()).unwrap();
    let refusal = show_nothing(&restarted.start().await).await.unwrap_err();
    assert_eq!(refusal, Refusal::Missing);
}

#[tokio::test]
async fn a_file_that_lost_its_last_line_is_refused_at_the_start_too() {
    let restarted = Restarted::new();
    for name in ["one", "two"] {
        restarted.file().add(&token(name).1).unwrap();
    }
    restarted.start().await;
    let text = fs::read_to_string(restarted.file().path()).unwrap();
    let second = text.rfind("\n[[").unwrap();
    for cut in [&text[..second], "", text.trim_end_matches("[end]\n")] {
        fs::write(restarted.file().path(), cut).unwrap();
        let error = Credentials::open(restarted.options()).await.unwrap_err();
        assert!(matches!(error, Error::CutShort { .. }), "{error}");
        assert!(error.to_string().contains("[end]"), "{error}");
    }
    // What never had the line needs none.
    let other = Restarted::new();
    fs::write(other.file().path(), text.trim_end_matches("[end]\n")).unwrap();
    for _ in 0..2 {
        assert_eq!(other.start().await.status().credentials, 2);
    }
}

#[tokio::test]
async fn every_beginning_of_a_file_that_has_its_last_line_changes_nothing() {
    let (one, two) = (token("one"), token("two"));
    let scene = Scene::new(&[&one.1, &two.1]).await;
    let grants = [
        scene.show(&one.0).await.unwrap(),
        scene.show(&two.0).await.unwrap(),
    ];
    let text = scene.text();
    // What parses and stays is looked at until it would be believed; the rest passes.
    let sections: Vec<usize> = text.match_indices("\n[[").map(|(at, _)| at).collect();
    let stays = [0, sections[0] + 1, sections[1] + 1, text.len() - 6];
    for length in stays {
        scene
            .change(|file| fs::write(file.path(), &text[..length]).unwrap())
            .await;
        let fault = scene.credentials.status().fault.unwrap();
        assert!(fault.contains("`[end]`"), "{length}: {fault}");
        for grant in &grants {
            assert!(is_running(grant).await, "{length}");
        }
    }
    for length in 0..text.len() {
        fs::write(scene.file.path(), &text.as_bytes()[..length]).unwrap();
        for grant in &grants {
            assert!(is_running(grant).await, "{length}");
        }
    }
    scene.change(|_| scene.write(&text)).await;
    let status = scene.credentials.status();
    assert_eq!((status.fault, status.credentials), (None, 2));
    for (grant, token) in grants.iter().zip([&one.0, &two.0]) {
        assert!(is_running(grant).await);
        assert!(scene.show(token).await.is_ok());
    }
}

#[tokio::test]
async fn a_moment_without_file_descriptors_is_no_deletion() {
    let scene = Scene::new(&[]).await;
    let nobody = show_nothing(&scene.credentials).await.unwrap();
    // It cannot be read, and the system does not say that it is not there.
    scene
        .change(|file| fs::create_dir(file.path()).unwrap())
        .await;
    assert!(scene.credentials.status().fault.is_some());
    fs::remove_dir(scene.file.path()).unwrap();
    let mut state = scene.credentials.shared.state.subscribe();
    let well = state.wait_for(|state| state.status().fault.is_none());
    tokio::time::timeout(SOON, well).await.unwrap().unwrap();
    assert!(is_running(&nobody).await);
    assert!(!scene.credentials.is_configured());
    assert!(show_nothing(&scene.credentials).await.is_ok());
}

#[tokio::test]
async fn a_file_that_others_can_write_is_not_taken_over_and_not_started_with() {
    use std::os::unix::fs::PermissionsExt as _;
    let (shown, entry) = token("one");
    let scene = Scene::new(&[&entry]).await;
    let grant = scene.show(&shown).await.unwrap();
    let (_, other) = token("two");
    let set = |mode: u32| {
        fs::set_permissions(scene.file.path(), fs::Permissions::from_mode(mode)).unwrap();
    };
    scene
        .change(|file| {
            file.add(&other).unwrap();
            set(0o666);
        })
        .await;
    let fault = scene.credentials.status().fault.unwrap();
    assert!(fault.contains("chmod go-w"), "{fault}");
    assert_eq!(scene.credentials.status().credentials, 1);
    assert!(is_running(&grant).await);
    let options = Options {
        file: Some(scene.file.path().to_owned()),
        ..Options::default()
    };
    let error = Credentials::open(options).await.unwrap_err();
    assert!(error.to_string().contains("chmod go-w"), "{error}");
    scene.change(|_| set(0o644)).await;
    let status = scene.credentials.status();
    assert_eq!((status.fault, status.credentials), (None, 2));
}

#[tokio::test]
async fn names_of_other_kinds_are_other_callers() {
    let names = ["uri:a", "dns:a", "email:a", "ip:a", "cn:a"];
    let identities = NameKind::ALL.map(|kind| Identity::new(kind, "a"));
    for (own, name) in names.into_iter().enumerate() {
        let (_, entry) = token("only");
        let entry = Entry {
            proof: Proof::Certificate(CertificateName::parse(name)),
            ..entry
        };
        let scene = Scene::new(&[&entry]).await;
        for (index, identity) in identities.iter().enumerate() {
            let presented = Presented {
                certificate: Some(identity),
                ..Presented::default()
            };
            let shown = scene.credentials.authenticate(presented).await;
            assert_eq!(shown.is_ok(), index == own, "{name} {identity:?}");
        }
    }
}

mod prefixes {
    //! What a file that is cut short can say at most.

    use proptest::prelude::*;

    use super::*;

    fn allowed() -> impl Strategy<Value = Allowed> {
        let names = proptest::sample::subsequence(vec!["user.created", "user.*", "b"], 0..=3);
        prop_oneof![
            Just(Allowed::All),
            names.prop_map(|names| {
                Allowed::Only(names.into_iter().map(str::to_owned).collect())
            }),
        ]
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let scope = (allowed(), "app_[a-c]").prop_map(|(types, app)| Scope {
            types,
            apps: match app.as_str() {
                "app_a" => Allowed::All,
                _ => Allowed::Only(vec![app]),
            },
        });
        let at = prop::option::of(0_i64..2_000_000_000);
        let previous = prop::option::of(0_i64..2_000_000_000);
        let streams_max = prop::option::of(1_usize..=1000);
        (any::<bool>(), scope, streams_max, at, previous).prop_map(
            |(is_token, scope, streams_max, expires_at, previous)| Entry {
                name: String::new(),
                proof: if is_token {
                    Proof::Token(Token::generate().unwrap().digest())
                } else {
                    Proof::Certificate(CertificateName::parse("uri:spiffe://e/"))
                },
                scope,
                previous: previous.filter(|_| is_token).map(|at| PreviousToken {
                    digest: Token::generate().unwrap().digest(),
                    created_at: Timestamp::from_second(at).ok(),
                    expires_at: Timestamp::from_second(at).unwrap(),
                }),
                streams_max,
                connections_max: streams_max.map(|count| count * 2),
                unsent_bytes_max: streams_max.map(|count| count * 1024),
                created_at: Timestamp::from_second(1).ok(),
                expires_at: expires_at.and_then(|at| Timestamp::from_second(at).ok()),
            },
        )
    }

    fn is_nothing(allowed: &Allowed) -> bool {
        *allowed == Allowed::Only(Vec::new())
    }

    /// Whether one allows nothing that the other does not.
    fn grants_no_more(one: &Entry, full: &Entry) -> bool {
        is_nothing(&one.scope.types) || is_nothing(&one.scope.apps) || one == full
    }

    proptest! {
        #[test]
        fn the_beginning_of_a_file_grants_no_more_than_the_whole(
            entries in prop::collection::vec(entry(), 1..4),
        ) {
            let mut text = String::new();
            let mut whole = Vec::new();
            for (index, mut entry) in entries.into_iter().enumerate() {
                entry.name = format!("entry {index}");
                if let Proof::Certificate(_) = entry.proof {
                    let name = format!("uri:spiffe://e/{index}");
                    entry.proof = Proof::Certificate(CertificateName::parse(&name));
                }
                text = edit::with(&text, &entry).unwrap();
                whole.push(entry);
            }
            prop_assert_eq!(&document::parse(&text).unwrap().entries, &whole);
            for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)) {
                let Ok(part) = document::parse(&text[..end]) else {
                    continue;
                };
                if part.has_end {
                    prop_assert_eq!(part.entries, whole.clone());
                    continue;
                }
                for entry in part.entries {
                    let full = whole.iter().find(|full| full.name == entry.name);
                    prop_assert!(full.is_some_and(|full| grants_no_more(&entry, full)));
                }
            }
        }
    }
}

mod damage;
mod rotation;
