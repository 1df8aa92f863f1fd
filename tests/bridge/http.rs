//! The webhook port from outside: every answer of the table, against the built program.

use crate::support::{APP, Bridge, batch, item};

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_batch_is_accepted_and_survives_every_kind_of_end() {
    let mut bridge = Bridge::start().await;
    let items = [
        item("evt_1", "user.created", "usr_1"),
        item("evt_2", "user.created", "usr_2"),
    ];
    bridge.append(&items).await;
    bridge.kill();
    bridge.restart().await;
    assert_eq!(bridge.head().await, 2);
    assert!(bridge.terminate().await.success());
    bridge.restart_elsewhere().await;
    let again = bridge.post(batch(APP, &items).as_bytes()).await;
    assert_eq!(again.text(), r#"{"accepted":0,"duplicates":2}"#);
    assert_eq!(bridge.head().await, 2);
}
