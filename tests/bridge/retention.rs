//! What is left when the disk is full: a restart that can be read, and a bridge that goes on by itself.

use std::{ffi::OsStr, fs, path::Path, process::Command};

use crate::{
    disk::{BATCHES_MAX, after, alike, assert_holds, batch},
    support::{
        Setup,
        sender::{Sender, eventually},
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_can_be_restarted_and_read() {
    let mut bridge = Setup::default().prepare();
    let (data, own_disk) = (bridge.data_dir(), ["--user", "--map-root-user", "--mount"]);
    let probe = Command::new("unshare").args(own_disk).arg("true").output();
    if !probe.is_ok_and(|probe| probe.status.success()) {
        // The log's own tests have a disk that only says that it is full.
        eprintln!("skipped: this system lets nobody mount a small disk of his own (unshare)");
        return;
    }
    bridge.restart_elsewhere().await;
    let sender = Sender::to(bridge.addresses.webhook);
    for index in 0..3 {
        assert_eq!(sender.send(&batch(index)).await.counts(), (100, 0));
    }
    assert!(bridge.terminate().await.success());

    // The same directory on a disk of which nothing is left.
    let seed = data.with_file_name("seed");
    fs::rename(&data, &seed).unwrap();
    fs::create_dir(&data).unwrap();
    let line = format!(
        "mount -t tmpfs -o size=12m,mode=700 tmpfs '{data}' && cp -a '{seed}/.' '{data}' && \
         {{ cat /dev/zero > '{data}/ballast' 2>/dev/null || chmod 600 '{data}/ballast'; }}",
        data = data.display(),
        seed = seed.display(),
    );
    let mounted = after(&line, &bridge.command_elsewhere());
    let before: Vec<&OsStr> = own_disk.iter().map(OsStr::new).collect();
    let before = [&before[..], &[mounted.get_program()]].concat();
    let command = alike(&mounted, "unshare".as_ref(), &before);
    bridge.run_until("listening", command).await;
    let inside = Path::new("/proc").join(bridge.process_id().to_string());
    let inside = inside.join("root").join(data.strip_prefix("/").unwrap());
    assert!(fs::metadata(inside.join("ballast")).unwrap().len() > 1024 * 1024);

    assert_holds(&bridge, 3).await;
    let ready = bridge.admin("/readyz").await;
    assert_eq!(ready.status, 503);
    assert!(ready.text().contains("full"), "{}", ready.text());
    let sender = Sender::to(bridge.addresses.webhook);
    let mut refused = None;
    // There may be some room in the segment that is written to.
    for index in 3..BATCHES_MAX {
        let reply = sender.send(&batch(index)).await;
        if reply.status != 200 {
            refused = Some((index, reply));
            break;
        }
    }
    let (index, reply) = refused.unwrap();
    assert_eq!(reply.refusal(), (503, "log_full"));
    assert!(reply.retry_after_seconds.is_some_and(|seconds| seconds > 0));

    fs::remove_file(inside.join("ballast")).unwrap();
    let is_taken = async || (sender.send(&batch(index)).await.status == 200).then_some(());
    eventually(is_taken).await;
    eventually(async || (bridge.admin("/readyz").await.status == 200).then_some(())).await;
    assert_holds(&bridge, index + 1).await;
}
