//! Two tokens of one credential, when they were used, and when they expire.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn rotation(keep_old_for: Duration) -> (Token, Rotation) {
    let token = Token::generate().unwrap();
    let rotation = Rotation {
        digest: token.digest(),
        now: Timestamp::now(),
        expires_at: None,
        keep_old_for,
    };
    (token, rotation)
}

impl Scene {
    /// Rotates the token of a credential, and waits until the bridge has seen it.
    async fn rotate(&self, name: &str, keep_old_for: Duration) -> Token {
        let (token, rotation) = rotation(keep_old_for);
        self.change(|file| file.rotate(name, &rotation).unwrap())
            .await;
        token
    }
}

#[tokio::test]
async fn a_rotation_disturbs_no_stream_and_both_tokens_share_scope_and_quota() {
    let (old, entry) = token("one");
    let entry = Entry {
        streams_max: Some(2),
        scope: Scope {
            types: only(&["user.*"]),
            apps: Allowed::All,
        },
        ..entry
    };
    let scene = Scene::new(&[&entry]).await;
    let old_grant = scene.show(&old).await.unwrap();
    let _place = old_grant.enter(9).unwrap();

    let new = scene.rotate("one", SECOND * 3600).await;
    assert!(is_running(&old_grant).await);
    let new_grant = scene.show(&new).await.unwrap();
    assert_eq!(
        new_grant.narrow(Spec::default()),
        old_grant.narrow(Spec::default())
    );
    let _second_place = new_grant.enter(9).unwrap();
    let full = QuotaReached::Streams { streams_max: 2 };
    assert_eq!(old_grant.enter(9).unwrap_err(), full);
    assert_eq!(new_grant.enter(9).unwrap_err(), full);
    assert!(scene.show(&old).await.is_ok());
    assert_eq!(scene.credentials.status().credentials, 1);

    scene
        .change(|file| file.remove_old_token("one").unwrap())
        .await;
    assert_eq!(ended(&old_grant).await, Ended::Revoked);
    assert_eq!(scene.show(&old).await.unwrap_err(), Refusal::Unknown);
    assert!(is_running(&new_grant).await);
    assert!(scene.show(&new).await.is_ok());

    // A leak: nothing of before is left.
    let newest = scene.rotate("one", Duration::ZERO).await;
    assert_eq!(ended(&new_grant).await, Ended::Revoked);
    assert!(scene.show(&newest).await.is_ok());
}

#[tokio::test]
async fn revoking_a_credential_ends_the_streams_of_both_its_tokens() {
    let (old, entry) = token("one");
    let scene = Scene::new(&[&entry]).await;
    let new = scene.rotate("one", SECOND * 3600).await;
    let grants = [
        scene.show(&old).await.unwrap(),
        scene.show(&new).await.unwrap(),
    ];
    scene.change(|file| file.remove("one").unwrap()).await;
    for grant in grants {
        assert_eq!(ended(&grant).await, Ended::Revoked);
    }
}

#[tokio::test(start_paused = true)]
async fn streams_of_the_old_token_end_when_it_expires() {
    let (old, entry) = token("one");
    let scene = Scene::new(&[&entry]).await;
    let grant = scene.show(&old).await.unwrap();
    let begun = Instant::now();
    let new = scene.rotate("one", SECOND * 100).await;
    let new_grant = scene.show(&new).await.unwrap();
    assert_eq!(grant.ended().await, Ended::Expired);
    let waited = begun.elapsed();
    assert!(waited > SECOND * 98 && waited < SECOND * 102, "{waited:?}");
    assert_eq!(scene.show(&old).await.unwrap_err(), Refusal::Expired);
    assert!(is_running(&new_grant).await);
    // And the next rotation needs no other command.
    let (newest, rotation) = rotation(SECOND * 100);
    let rotation = Rotation {
        now: Timestamp::now() + SECOND * 200,
        ..rotation
    };
    scene
        .change(|file| file.rotate("one", &rotation).unwrap())
        .await;
    assert!(scene.show(&newest).await.is_ok());
    assert!(is_running(&new_grant).await);
}

#[tokio::test]
async fn an_expiry_that_is_moved_ends_no_stream_before_it_comes() {
    let (shown, entry) = token("one");
    let scene = Scene::new(&[&entry]).await;
    let grant = scene.show(&shown).await.unwrap();
    let line = |year: u32| format!("expires_at = {year}-01-01T00:00:00Z\nsha256");
    let text = scene.text();
    let (start, section) = text.split_at(text.find("\n[[").unwrap());
    for year in [2099, 2098] {
        let text = format!("{start}{}", section.replace("sha256", &line(year)));
        scene.change(|_| scene.write(&text)).await;
        assert!(is_running(&grant).await, "{year}");
    }
    let text = format!("{start}{}", section.replace("sha256", &line(2001)));
    scene.change(|_| scene.write(&text)).await;
    assert_eq!(ended(&grant).await, Ended::Expired);
    assert_eq!(scene.show(&shown).await.unwrap_err(), Refusal::Expired);
    scene
        .change(|_| scene.write(&scene.text().replace("2001", "2099")))
        .await;
    assert!(scene.show(&shown).await.is_ok());
}

#[tokio::test]
async fn a_rotated_file_that_is_cut_anywhere_changes_nothing() {
    let (old, entry) = token("one");
    let scene = Scene::new(&[&entry]).await;
    let grant = scene.show(&old).await.unwrap();
    let before = scene.text();
    let (_, rotation) = rotation(SECOND * 3600);
    scene
        .change(|file| file.rotate("one", &rotation).unwrap())
        .await;
    let after = scene.text();
    for text in [&before, &after] {
        for length in 0..text.len() {
            fs::write(scene.file.path(), &text.as_bytes()[..length]).unwrap();
            assert!(is_running(&grant).await, "{length}");
        }
    }
    // It stays long enough to be believed if it were whole.
    let cut = after.rfind("\ntypes").unwrap();
    scene
        .change(|file| fs::write(file.path(), &after[..cut]).unwrap())
        .await;
    assert!(is_running(&grant).await);
    assert!(scene.show(&old).await.is_ok());
}

#[tokio::test]
async fn a_rotation_that_nobody_has_seen_is_taken_back() {
    let (_, entry) = token("one");
    let scene = Scene::new(&[&entry]).await;
    let before = scene.text();
    let (_, lost) = rotation(SECOND * 3600);
    scene.file.rotate("one", &lost).unwrap();
    scene.file.take_back(&entry, lost.digest).unwrap();
    assert_eq!(scene.text(), before);
    // Another command has revoked the old token since this one had read the file.
    let (_, first) = rotation(SECOND * 3600);
    scene.file.rotate("one", &first).unwrap();
    let read = scene.file.read().unwrap().unwrap().remove(0);
    scene.file.remove_old_token("one").unwrap();
    let revoked = scene.text();
    let (_, at_once) = rotation(Duration::ZERO);
    let rotated = scene.file.rotate("one", &at_once).unwrap();
    assert_ne!(rotated.before, read);
    scene
        .file
        .take_back(&rotated.before, at_once.digest)
        .unwrap();
    assert_eq!(scene.text(), revoked, "it stays revoked");
    let (_, next) = rotation(Duration::ZERO);
    scene.file.rotate("one", &lost).unwrap();
    scene.file.rotate("one", &next).unwrap();
    let error = scene.file.take_back(&entry, lost.digest).unwrap_err();
    let source = RotationError::Changed;
    assert!(matches!(error, Error::Rotation { source: it, .. } if it == source));
    assert!(matches!(
        scene.file.rotate("two", &next),
        Err(Error::Unknown { .. })
    ));
}

/// A bridge whose uses are tracked, at a time that is moved by hand.
async fn tracked(restarted: &Restarted, clock: &Clock) -> Credentials {
    Credentials::open_with_clock(restarted.options(), Arc::clone(clock))
        .await
        .unwrap()
}

/// When a token was last used, as the data directory has it after so many seconds.
async fn last_use(restarted: &Restarted, entry: &Entry, seconds: u32) -> Option<Timestamp> {
    tokio::time::sleep(SECOND * seconds).await;
    LastUse::read(restarted.directory.path()).of(&entry.proof)
}

#[tokio::test(start_paused = true)]
async fn a_use_is_written_at_most_once_a_minute_and_survives_a_restart() {
    let (restarted, clock) = (Restarted::new(), clock());
    let tokens = ["one", "two", "three", "never"].map(token);
    for (_, entry) in &tokens {
        restarted.file().add(entry).unwrap();
    }
    let [(one, first), (two, second), (three, third), (_, never)] = &tokens;
    let credentials = tracked(&restarted, &clock).await;
    assert_eq!(last_use(&restarted, first, 5).await, None);
    show(&credentials, one).await.unwrap();
    let used = last_use(&restarted, first, 1).await.unwrap();
    show(&credentials, two).await.unwrap();
    assert_eq!(
        last_use(&restarted, second, 50).await,
        None,
        "it is not due"
    );
    assert!(last_use(&restarted, second, 11).await.is_some());
    // What is used at the end is written at the end.
    show(&credentials, three).await.unwrap();
    credentials.shutdown().await;
    assert!(last_use(&restarted, third, 0).await.is_some());
    assert_eq!(last_use(&restarted, first, 0).await, Some(used));
    assert_eq!(last_use(&restarted, never, 0).await, None);

    let credentials = tracked(&restarted, &clock).await;
    show(&credentials, three).await.unwrap();
    assert!(last_use(&restarted, third, 1).await.unwrap() > used);
    assert_eq!(last_use(&restarted, first, 0).await, Some(used));
    // What is revoked is forgotten.
    restarted.file().remove("two").unwrap();
    tokio::time::sleep(SECOND * 2).await;
    show(&credentials, one).await.unwrap();
    assert!(last_use(&restarted, first, 61).await.unwrap() > used);
    assert_eq!(last_use(&restarted, second, 0).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_stays_open_is_a_use() {
    let (restarted, clock) = (Restarted::new(), clock());
    let (shown, entry) = token("one");
    restarted.file().add(&entry).unwrap();
    let credentials = tracked(&restarted, &clock).await;
    let grant = show(&credentials, &shown).await.unwrap();
    let first = last_use(&restarted, &entry, 1).await.unwrap();
    let later = last_use(&restarted, &entry, 600).await.unwrap();
    assert!(later.duration_since(first).as_secs() >= 500, "{later}");
    drop(grant);
    let last = last_use(&restarted, &entry, 61).await;
    assert_eq!(last_use(&restarted, &entry, 600).await, last);
}

#[tokio::test(start_paused = true)]
async fn a_lost_or_damaged_file_of_uses_changes_nothing_for_callers() {
    let (restarted, clock) = (Restarted::new(), clock());
    let (shown, entry) = token("one");
    restarted.file().add(&entry).unwrap();
    let path = restarted.directory.path().join("last-use.txt");
    for text in ["\u{0}", "2026-01-01T00:00:00Z", "never one\n"] {
        fs::write(&path, text).unwrap();
        let credentials = tracked(&restarted, &clock).await;
        assert_eq!(last_use(&restarted, &entry, 0).await, None);
        let stranger = Token::generate().unwrap();
        assert!(show(&credentials, &stranger).await.is_err());
        assert!(show(&credentials, &shown).await.is_ok());
        assert!(last_use(&restarted, &entry, 1).await.is_some());
        credentials.shutdown().await;
    }
    // It cannot be written.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let credentials = tracked(&restarted, &clock).await;
    assert!(show(&credentials, &shown).await.is_ok());
    assert_eq!(last_use(&restarted, &entry, 1).await, None);
    assert!(show(&credentials, &shown).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_removed_while_credentials_are_in_force_is_written_again() {
    let (restarted, clock) = (Restarted::new(), clock());
    restarted.file().add(&token("one").1).unwrap();
    let _credentials = tracked(&restarted, &clock).await;
    let recorded = restarted.record().read().unwrap();
    fs::remove_file(restarted.record().path()).unwrap();
    tokio::time::sleep(SECOND * 62).await;
    assert_eq!(restarted.record().read(), Some(recorded));
    // Also when the credentials file is gone too.
    fs::remove_file(restarted.file().path()).unwrap();
    tokio::time::sleep(SECOND * 2).await;
    fs::remove_file(restarted.record().path()).unwrap();
    tokio::time::sleep(SECOND * 62).await;
    assert!(restarted.record().read().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_credential_that_expires_soon_is_warned_of() {
    let (_, entry) = token("one");
    let day = 86_400;
    let entry = Entry {
        expires_at: Some(Timestamp::now() + SECOND * 15 * day),
        ..entry
    };
    let scene = Scene::new(&[&entry, &token("endless").1]).await;
    assert_eq!(scene.credentials.warning(), None);
    assert_eq!(scene.credentials.expiries().len(), 1);
    tokio::time::advance(SECOND * 2 * day).await;
    let said = scene.credentials.warning().unwrap();
    for part in ["one at 2", "token rotate"] {
        assert!(said.contains(part), "{said}");
    }
    tokio::time::advance(SECOND * 14 * day).await;
    assert_eq!(scene.credentials.warning(), None, "it has expired");
    // A fault of the file comes first.
    scene.change(|_| scene.write("typo")).await;
    assert!(scene.credentials.warning().unwrap().contains("TOML"));
}

#[tokio::test]
async fn a_file_that_is_no_regular_file_is_not_waited_for() {
    let (shown, entry) = token("one");
    let scene = Scene::new(&[&entry]).await;
    let grant = scene.show(&shown).await.unwrap();
    scene
        .change(|file| {
            fs::remove_file(file.path()).unwrap();
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mkfifoat(rustix::fs::CWD, file.path(), mode).unwrap();
        })
        .await;
    let fault = scene.credentials.status().fault.unwrap();
    assert!(fault.contains("not a regular file"), "{fault}");
    assert!(is_running(&grant).await);
    let (_, rotation) = rotation(SECOND);
    for error in [
        scene.file.read().unwrap_err(),
        scene.file.add(&entry).unwrap_err(),
        scene.file.rotate("one", &rotation).unwrap_err(),
    ] {
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }
}
