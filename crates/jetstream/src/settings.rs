//! Owns which settings of a stream keep the promises, which break one, and what of it can be seen but not
//! judged. Pure: the stream is read and changed elsewhere.

use std::time::Duration;

use crate::{
    api::{AccountInfo, StreamConfig, StreamInfo},
    options::{Names, Options},
};

/// What a message has beside its commit: subject, headers, and the subject for acknowledgements.
const MESSAGE_OVERHEAD_BYTES: usize = 4096;
/// How large a message must be allowed to be: the block of a body of 1 MiB has more than 2 MiB.
pub(crate) const MESSAGE_BYTES: usize = 4 << 20;
/// How large a commit may be.
pub(crate) const COMMIT_BYTES_MAX: usize = MESSAGE_BYTES - MESSAGE_OVERHEAD_BYTES;
/// A consumer of a bridge that is gone is removed by the server after this time.
pub(crate) const CONSUMER_INACTIVE: Duration = Duration::from_secs(30);
/// The first version whose leaders commit only entries of their own term and whose log has to fit to its
/// snapshot (nats-server#7955 and #7620): earlier ones could lose an acknowledged commit in an election.
pub(crate) const SERVER_VERSION: (u64, u64) = (2, 14);

/// Before this much time has been stored, the rate is not judged.
const RATE_TIME_MIN: Duration = Duration::from_secs(60 * 60);

/// The settings of a new stream.
pub(crate) fn new_stream(options: &Options, names: &Names) -> StreamConfig {
    StreamConfig {
        name: names.stream.clone(),
        description:
            "The log of prelude-bridge: only bridges may publish to it, and nobody may delete or \
                      purge"
                .to_owned(),
        subjects: vec![names.commits.clone()],
        retention: "limits".to_owned(),
        max_consumers: -1,
        max_msgs: -1,
        max_bytes: match i64::try_from(options.retention_bytes) {
            Ok(0) | Err(_) => -1,
            Ok(bytes) => bytes,
        },
        max_age: nanoseconds(options.retention_age),
        max_msgs_per_subject: -1,
        max_msg_size: -1,
        discard: "old".to_owned(),
        storage: "file".to_owned(),
        num_replicas: options.replicas,
        deny_delete: true,
        deny_purge: true,
        allow_direct: true,
        ..StreamConfig::default()
    }
}

/// What breaks a promise, each with the command that mends it.
pub(crate) fn problems(config: &StreamConfig, options: &Options, names: &Names) -> Vec<String> {
    let mut problems = Problems {
        stream: &names.stream,
        found: Vec::new(),
    };
    storage(config, options, &mut problems);
    retention(config, options, &mut problems);
    contents(config, names, &mut problems);
    problems.found
}

struct Problems<'a> {
    stream: &'a str,
    found: Vec<String>,
}

impl Problems<'_> {
    /// What `nats stream edit` mends.
    fn editable(&mut self, is_wrong: bool, what: &str, flags: &str) {
        if is_wrong {
            let stream = self.stream;
            self.found
                .push(format!("{what}: run `nats stream edit {stream} {flags}`"));
        }
    }

    fn unchangeable(&mut self, is_wrong: bool, what: &str) {
        if is_wrong {
            self.found
                .push(format!("{what}: it cannot be changed: use another stream"));
        }
    }
}

/// Whether what is acknowledged is kept.
fn storage(config: &StreamConfig, options: &Options, problems: &mut Problems<'_>) {
    problems.unchangeable(
        config.storage != "file",
        &format!(
            "it is stored in {} and is lost when its servers stop",
            config.storage
        ),
    );
    problems.unchangeable(
        config.persist_mode == "async",
        "it acknowledges before it stores (persist_mode async)",
    );
    problems.editable(config.no_ack, "it does not acknowledge (no_ack)", "--ack");
    problems.editable(
        config.num_replicas < options.replicas,
        &format!(
            "it has {} replicas of {} that are configured",
            config.num_replicas, options.replicas
        ),
        &format!("--replicas={}", options.replicas),
    );
    problems.unchangeable(config.sealed, "it is sealed: nothing can be added");
}

/// Whether it is kept long enough, and all commits fit.
fn retention(config: &StreamConfig, options: &Options, problems: &mut Problems<'_>) {
    problems.editable(
        config.discard != "old",
        &format!(
            "when it is full it refuses commits instead of removing old ones (discard {})",
            config.discard
        ),
        "--discard=old",
    );
    let age = options.ids_age;
    problems.editable(
        config.max_age > 0 && config.max_age < nanoseconds(age),
        &format!(
            "it keeps commits for {} (max_age), and the ids in them are needed for {}",
            days(Duration::from_nanos(config.max_age.unsigned_abs())),
            days(age)
        ),
        &format!("--max-age={}h", age.as_secs().div_ceil(3600)),
    );
    for (flag, limit) in [
        ("max-msgs", config.max_msgs),
        ("max-msgs-per-subject", config.max_msgs_per_subject),
    ] {
        let what = format!(
            "it has a limit of {limit} messages ({})",
            flag.replace('-', "_")
        );
        problems.editable(limit > 0, &what, &format!("--{flag}=-1"));
    }
    let consumers = config.max_consumers;
    let what = format!("it has a limit of {consumers} readers (max_consumers)");
    problems.unchangeable(consumers > 0, &what);
    for (flag, limit) in [
        ("max-msg-size", config.max_msg_size),
        ("max-bytes", config.max_bytes),
    ] {
        let is_small = limit > 0 && usize::try_from(limit).is_ok_and(|limit| limit < MESSAGE_BYTES);
        let what = format!(
            "a commit may have {MESSAGE_BYTES} bytes, and {} is {limit}",
            flag.replace('-', "_")
        );
        problems.editable(is_small, &what, &format!("--{flag}=-1"));
    }
    let what = format!("it removes what was read (retention {})", config.retention);
    problems.unchangeable(config.retention != "limits", &what);
}

/// Whether it has the commits of bridges, and nothing else.
fn contents(config: &StreamConfig, names: &Names, problems: &mut Problems<'_>) {
    problems.editable(
        config.subjects != [names.commits.as_str()],
        &format!(
            "it must have the one subject {}, and has {}",
            names.commits,
            config.subjects.join(", ")
        ),
        &format!("--subjects={}", names.commits),
    );
    problems.unchangeable(
        config.mirror.is_some() || !config.sources.is_empty(),
        "it copies from other streams (mirror, sources)",
    );
    problems.editable(
        config.subject_transform.is_some(),
        "it changes the subjects of messages (subject_transform)",
        "--no-transform",
    );
    problems.editable(
        config.allow_rollup_hdrs,
        "a message can remove all others (allow_rollup_hdrs)",
        "--no-allow-rollup",
    );
    problems.unchangeable(
        config.allow_msg_ttl || config.allow_msg_schedules || config.allow_msg_counter,
        "messages expire, are scheduled or are counted (allow_msg_ttl, allow_msg_schedules, allow_msg_counter)",
    );
}

/// What can be seen, but is for the operator to judge.
pub(crate) fn warnings(
    info: &StreamInfo,
    account: &AccountInfo,
    options: &Options,
    names: &Names,
) -> Vec<String> {
    let mut found = Vec::new();
    let StreamConfig { name: stream, .. } = &info.config;
    let mut warn = |is_so: bool, what: String| {
        if is_so {
            found.push(format!("the stream {stream} {what}"));
        }
    };
    warn(
        info.config.num_replicas == 1,
        "has one replica: events that are only there are lost with that server's disk, and with the power if its \
         sync_interval is not `always` (the bridge cannot see that); three replicas survive one server"
            .to_owned(),
    );
    warn(
        !info.config.deny_delete || !info.config.deny_purge,
        format!(
            "lets messages be deleted or purged: run `nats stream edit {stream} --deny-delete --deny-purge`, \
             which cannot be undone"
        ),
    );
    warn(
        info.config.republish.is_some(),
        "republishes the commits, with all personal data, to subscribers of NATS".to_owned(),
    );
    let configured = new_stream(options, names);
    warn(
        info.config.max_age != configured.max_age || info.config.max_bytes != configured.max_bytes,
        format!(
            "has a retention of its own (max_age {}, max_bytes {}), which holds instead of the configured one",
            limit(info.config.max_age, |n| days(Duration::from_nanos(n))),
            limit(info.config.max_bytes, |n| n.to_string()),
        ),
    );
    if let Some(age) = age_when_full(info)
        && age < options.ids_age
    {
        warn(
            true,
            format!(
                "will be full (max_bytes) with commits of {} at the present rate, and ids are needed for {}: raise \
                 max_bytes",
                days(age),
                days(options.ids_age)
            ),
        );
    }
    let tier = account.tiers.get(&format!("R{}", info.config.num_replicas));
    let limits = tier.map_or(&account.limits, |tier| &tier.limits);
    warn(
        info.config.max_bytes <= 0 && limits.max_storage <= 0,
        "has no limit of bytes, nor has the account: its disk can become full, and then nothing is taken"
            .to_owned(),
    );
    warn(
        (1..20).contains(&limits.max_consumers),
        format!(
            "is in an account with a limit of {} consumers: each bridge needs one, and a second one while it \
             reconnects",
            limits.max_consumers
        ),
    );
    let replicas = info.cluster.iter().flat_map(|cluster| &cluster.replicas);
    for replica in replicas.filter(|replica| replica.offline) {
        warn(
            true,
            format!("has a replica at {}, which is not there", replica.name),
        );
    }
    found
}

/// How old the oldest commit will be when the stream is full, at the rate of what it has.
fn age_when_full(info: &StreamInfo) -> Option<Duration> {
    let begin: jiff::Timestamp = info.state.first_ts.parse().ok()?;
    let end: jiff::Timestamp = info.ts.parse().ok()?;
    let span = Duration::try_from(end.duration_since(begin)).ok()?;
    let bytes_max = u64::try_from(info.config.max_bytes)
        .ok()
        .filter(|&bytes| bytes > 0)?;
    if info.state.messages == 0 || info.state.bytes == 0 || span < RATE_TIME_MIN {
        return None;
    }
    let seconds = u128::from(bytes_max) * u128::from(span.as_secs()) / u128::from(info.state.bytes);
    Some(Duration::from_secs(
        u64::try_from(seconds).unwrap_or(u64::MAX),
    ))
}

/// Refuses a server that is too old.
pub(crate) fn is_recent(version: &str) -> bool {
    let mut numbers = version.split(['.', '-']).map(str::parse::<u64>);
    matches!(
        (numbers.next(), numbers.next()),
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= SERVER_VERSION
    )
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

fn limit(value: i64, show: impl Fn(u64) -> String) -> String {
    match u64::try_from(value) {
        Ok(0) | Err(_) => "unlimited".to_owned(),
        Ok(value) => show(value),
    }
}

/// `15 days`, `36 hours`, `90 s`.
fn days(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..7200 => format!("{seconds} s"),
        7200..172_800 => format!("{} hours", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::test_options;

    const HOUR: i64 = 3600 * 1_000_000_000;

    fn stream() -> (StreamInfo, Options, Names) {
        let options = test_options();
        let names = Names::new(&options);
        let config = new_stream(&options, &names);
        let info = serde_json::json!({ "config": config, "created": "2026-11-01T00:00:00Z" });
        (serde_json::from_value(info).unwrap(), options, names)
    }

    #[test]
    fn what_is_created_is_accepted_and_gives_no_warning() {
        let (info, options, names) = stream();
        assert_eq!(
            problems(&info.config, &options, &names),
            Vec::<String>::new()
        );
        let said = warnings(&info, &AccountInfo::default(), &options, &names);
        assert_eq!(said, Vec::<String>::new());
    }

    #[test]
    fn the_ids_must_be_kept_long_enough() {
        let (mut info, options, names) = stream();
        for (age, is_right) in [
            (0, true),
            (360 * HOUR, true),
            (360 * HOUR - 1, false),
            (1, false),
        ] {
            info.config.max_age = age;
            let said = problems(&info.config, &options, &names);
            assert_eq!(said.is_empty(), is_right, "{age}: {said:?}");
        }
    }

    #[test]
    fn a_stream_that_is_full_too_early_is_told_by_its_rate() {
        let (mut info, options, names) = stream();
        let mut after = |hours: i64, bytes: u64| {
            let begin: jiff::Timestamp = "2026-11-01T00:00:00Z".parse().unwrap();
            info.state.messages = 1;
            info.state.bytes = bytes;
            info.state.first_ts = begin.to_string();
            info.ts = (begin + jiff::SignedDuration::from_hours(hours)).to_string();
            warnings(&info, &AccountInfo::default(), &options, &names)
        };
        // 10 GiB in 15 days are a 360th each hour.
        let hourly = (10 << 30) / 360;
        assert_eq!(after(24, 24 * hourly), Vec::<String>::new());
        let said = after(24, 25 * hourly);
        assert!(said.len() == 1 && said[0].contains("14 days"), "{said:?}");
        assert_eq!(
            after(0, 1 << 30),
            Vec::<String>::new(),
            "nothing is known of the rate yet"
        );
    }

    #[test]
    fn limits_of_the_account_and_replicas_that_are_away_are_told() {
        let (mut info, options, names) = stream();
        let account: AccountInfo = serde_json::from_str(
            r#"{ "limits": { "max_storage": -1, "max_consumers": -1 }, "tiers": { "R3": { "limits": { "max_consumers": 3 } } } }"#,
        )
        .unwrap();
        info.cluster = serde_json::from_str(
            r#"{ "replicas": [{ "name": "n1", "offline": true }, { "name": "n2" }] }"#,
        )
        .unwrap();
        let said = warnings(&info, &account, &options, &names);
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(
            said[0].contains("limit of 3 consumers") && said[1].contains("n1"),
            "{said:?}"
        );
    }

    #[test]
    fn old_servers_are_known_by_their_version() {
        for version in ["2.14.0", "2.14.0-RC.1", "2.15.1", "2.15.0-dev", "3.0.0"] {
            assert!(is_recent(version), "{version}");
        }
        for version in ["2.13.9", "2.9.10", "1.99.0", "", "2", "x.y", "2.x"] {
            assert!(!is_recent(version), "{version}");
        }
    }
}
