//! Trouble with the disk: a data directory that cannot be used is refused with its remedy, a disk
//! that is full delays events and loses none, and one that fails ends the process.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::{Command, Output, Stdio},
};

use crate::{
    cli::stderr,
    support::{
        Bridge, SOON, Setup, item, reader,
        sender::{Delivery, Reply, Sender, eventually},
    },
};

/// The user and the group that own nothing, on every system.
const NOBODY: u32 = 65_534;
/// More batches than any of the small disks here has room for.
pub(crate) const BATCHES_MAX: usize = 1_000;

/// Runs a `serve` that is to fail, to its end.
async fn fails(mut command: Command) -> Output {
    let running = tokio::task::spawn_blocking(move || command.output().unwrap());
    tokio::time::timeout(SOON, running).await.unwrap().unwrap()
}

/// Another program with the arguments and the environment of a command, after arguments of its own.
pub(crate) fn alike(command: &Command, program: &OsStr, before: &[&OsStr]) -> Command {
    let mut other = Command::new(program);
    other.env_clear().stdin(Stdio::null());
    other.args(before).args(command.get_args());
    let set = command
        .get_envs()
        .filter_map(|(name, value)| Some((name, value?)));
    other
        .envs(set)
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    other
}

/// A command that is begun by a line of the shell, which sees it as its arguments.
pub(crate) fn after(line: &str, command: &Command) -> Command {
    let line = format!("{line} && exec \"$@\"");
    let before = [
        "-c".as_ref(),
        line.as_ref(),
        "sh".as_ref(),
        command.get_program(),
    ];
    alike(command, "sh".as_ref(), &before)
}

/// That it ended with a code of a failed start, a message with the path, and what to do.
fn assert_refused(output: &Output, path: &Path, remedy: &str) {
    let said = stderr(output);
    assert!(matches!(output.status.code(), Some(1 | 2)), "{said}");
    assert!(said.contains(path.to_str().unwrap()), "{said}");
    assert!(said.contains(remedy), "{said}");
    assert!(!said.contains("ready"), "{said}");
}

#[tokio::test]
async fn a_data_directory_that_another_bridge_uses_is_refused() {
    let bridge = Bridge::start().await;
    let output = fails(bridge.command_elsewhere()).await;
    assert_refused(&output, &bridge.data_dir(), "--data-dir");
    assert!(stderr(&output).contains("another prelude-bridge"));
    bridge
        .append(&[item("evt_1", "user.created", "usr_1")])
        .await;
}

#[tokio::test]
async fn a_data_directory_is_made_with_all_that_leads_to_it_for_its_owner_alone() {
    let mut bridge = Setup::default().prepare();
    let home = bridge.data_dir().parent().unwrap().to_owned();
    // Relative, so that the way begins in the working directory.
    let (relative, data) = (OsStr::new("var/lib/bridge"), bridge.data_dir());
    let as_usual = bridge.command();
    let arguments = as_usual.get_args();
    let mut command = Command::new(as_usual.get_program());
    command.env_clear().current_dir(&home);
    command.args(arguments.map(|argument| if data == argument { relative } else { argument }));
    bridge.run(command).await;
    bridge
        .append(&[item("evt_1", "user.created", "usr_1")])
        .await;
    for directory in ["var", "var/lib", "var/lib/bridge"] {
        let mode = fs::metadata(home.join(directory))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700, "{directory}");
    }
}

#[tokio::test]
async fn a_data_directory_that_is_a_file_is_refused() {
    let bridge = Setup::default().prepare();
    fs::write(bridge.data_dir(), "not a directory").unwrap();
    let output = fails(bridge.command()).await;
    assert_refused(&output, &bridge.data_dir(), "--data-dir");
    assert_eq!(fs::read(bridge.data_dir()).unwrap(), b"not a directory");
}

#[tokio::test]
async fn a_data_directory_that_may_not_be_written_to_is_refused() {
    let bridge = Setup::default().prepare();
    let home = bridge.data_dir().parent().unwrap().to_owned();
    fs::create_dir(bridge.data_dir()).unwrap();
    fs::set_permissions(bridge.data_dir(), fs::Permissions::from_mode(0o555)).unwrap();
    let mut command = bridge.command();
    // Permissions hold for everyone but root: then somebody else has to try, with a copy of the
    // program, as the program itself may be where only root can go.
    if fs::write(bridge.data_dir().join("probe"), "").is_ok() {
        fs::remove_file(bridge.data_dir().join("probe")).unwrap();
        fs::set_permissions(&home, fs::Permissions::from_mode(0o755)).unwrap();
        let copy = home.join("prelude-bridge");
        // By a process of its own: had this one the copy open for writing, a test that starts
        // something at that moment would pass that on, and what is being written cannot be run.
        let mut copying = Command::new("cp");
        copying.arg(command.get_program()).arg(&copy);
        assert!(copying.status().unwrap().success());
        command = alike(&command, copy.as_os_str(), &[]);
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = fails(command).await;
    assert_refused(&output, &bridge.data_dir(), "--data-dir");
    assert!(stderr(&output).contains("may write"));
}

#[tokio::test]
async fn a_log_that_is_another_file_is_refused_and_left_alone() {
    let mut bridge = Bridge::start().await;
    assert_eq!(bridge.terminate().await.code(), Some(0));
    let log = bridge.data_dir().join("events-00001");
    let diary = "a diary, not a log. ".repeat(1_000);
    fs::write(&log, &diary).unwrap();
    fs::remove_file(bridge.data_dir().join("manifest")).unwrap();
    let output = fails(bridge.command()).await;
    assert_refused(&output, &log, "--data-dir");
    assert_eq!(fs::read_to_string(&log).unwrap(), diary);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_file_among_those_of_a_log_is_kept_aside() {
    let mut bridge = Bridge::start().await;
    assert_eq!(bridge.terminate().await.code(), Some(0));
    let diary = "a diary, not a log. ".repeat(1_000);
    fs::write(bridge.data_dir().join("events-00001"), &diary).unwrap();
    bridge.run(bridge.command()).await;
    assert!(bridge.stderr().contains("events-00001"));
    // A running bridge adds to its name since when it is there.
    assert!(bridge.terminate().await.success());
    let kept = fs::read_dir(bridge.data_dir().join("quarantine")).unwrap();
    let kept: Vec<_> = kept.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(fs::read_to_string(&kept[0]).unwrap(), diary);
}

/// A batch of a hundred events, some 25 KB in the log.
pub(crate) fn batch(index: usize) -> Delivery {
    let items: Vec<String> = (0..100)
        .map(|number| item(&format!("evt_{index}_{number}"), "user.created", "usr_1"))
        .collect();
    Delivery::of(&items)
}

/// Sends batches until one is not taken. Returns how many were, and what was said to that one, if
/// anything was.
async fn fill(sender: &Sender) -> (usize, Option<Reply>) {
    for index in 0..BATCHES_MAX {
        match sender.try_send(&batch(index)).await {
            Ok(reply) if reply.status == 200 => assert_eq!(reply.counts(), (100, 0)),
            other => return (index, other.ok()),
        }
    }
    unreachable!("there is room for {BATCHES_MAX} batches");
}

/// That a log holds these batches, whole, in their order, and nothing else.
pub(crate) async fn assert_holds(bridge: &Bridge, batches: usize) {
    let expected: Vec<String> = (0..batches)
        .flat_map(|batch| (0..100).map(move |number| format!("evt_{batch}_{number}")))
        .collect();
    let ids = reader::ids(bridge).await;
    assert!(
        ids == expected,
        "{} events of {}",
        ids.len(),
        expected.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_delays_events_and_loses_none() {
    let mut bridge = Setup::default().prepare();
    let data = bridge.data_dir();
    let own_disk = ["--user", "--map-root-user", "--mount"];
    let probe = Command::new("unshare").args(own_disk).arg("true").output();
    if !probe.is_ok_and(|probe| probe.status.success()) {
        eprintln!("skipped: this system lets nobody mount a small disk of his own (unshare)");
        return;
    }
    fs::create_dir(&data).unwrap();
    let line = format!("mount -t tmpfs -o size=4m tmpfs '{}'", data.display());
    let mounted = after(&line, &bridge.command());
    let before: Vec<&OsStr> = own_disk.iter().map(OsStr::new).collect();
    let before = [&before[..], &[mounted.get_program()]].concat();
    bridge
        .run(alike(&mounted, "unshare".as_ref(), &before))
        .await;
    // The disk is seen by nobody but the bridge, and through it.
    let inside = Path::new("/proc").join(bridge.process_id().to_string());
    let inside = inside.join("root").join(data.strip_prefix("/").unwrap());
    fs::write(inside.join("ballast"), vec![1; 1024 * 1024]).unwrap();

    let sender = Sender::to(bridge.addresses.webhook);
    let (taken, reply) = fill(&sender).await;
    let reply = reply.unwrap();
    assert_eq!(reply.refusal(), (503, "log_full"));
    assert!(reply.retry_after_seconds.is_some_and(|seconds| seconds > 0));
    assert_eq!(bridge.admin("/readyz").await.status, 503);
    assert_holds(&bridge, taken).await;
    // A retry of what is durable needs no room.
    assert_eq!(sender.send(&batch(0)).await.counts(), (0, 100));

    fs::remove_file(inside.join("ballast")).unwrap();
    let taken_now = async || (sender.send(&batch(taken)).await.status == 200).then_some(());
    eventually(taken_now).await;
    eventually(async || (bridge.admin("/readyz").await.status == 200).then_some(())).await;
    assert_holds(&bridge, taken + 1).await;

    // What a kill would leave at this moment, carried to another disk.
    bridge.signal("STOP");
    copy_into(&inside, &data);
    bridge.kill();
    bridge.restart_elsewhere().await;
    assert_holds(&bridge, taken + 1).await;
}

fn copy_into(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir(&to).unwrap();
            copy_into(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_ends_the_process_and_loses_nothing_that_was_answered() {
    let mut bridge = Setup::default().prepare();
    // Writes beyond 2,048 blocks of a file fail with EFBIG, which is no lack of room.
    let limited = after("trap '' XFSZ && ulimit -f 2048", &bridge.command());
    bridge.run(limited).await;
    let (taken, reply) = fill(&Sender::to(bridge.addresses.webhook)).await;
    if let Some(reply) = reply {
        assert_eq!(reply.refusal(), (503, "log_failed"));
        assert!(reply.retry_after_seconds.is_some_and(|seconds| seconds > 0));
    }
    let ended = bridge.ended().await;
    assert_eq!(ended.code(), Some(1), "{}", bridge.stderr());
    assert!(
        bridge.stderr().contains("the log failed"),
        "{}",
        bridge.stderr()
    );
    bridge.restart_elsewhere().await;
    let sender = Sender::to(bridge.addresses.webhook);
    // The one that was refused comes again.
    let (accepted, duplicates) = sender.send(&batch(taken)).await.counts();
    assert_eq!((accepted, duplicates), (100, 0));
    assert_holds(&bridge, taken + 1).await;
}
