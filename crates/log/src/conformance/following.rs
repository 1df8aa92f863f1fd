//! What following promises, and what the status says.

use std::sync::Arc;

use super::{Factory, Rig, in_time, numbered, record};
use crate::{Block, Error, Gap, Health};
use prelude_bridge_event::{Sequence, testing as fixtures};

pub async fn a_follower_begins_at_the_head_and_is_handed_every_commit(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    rig.append(&[1, 2]).await;
    for (after, gap) in [
        (
            0,
            Gap::Missing {
                expected: Sequence(1),
                found: Sequence(3),
            },
        ),
        (
            1,
            Gap::Missing {
                expected: Sequence(2),
                found: Sequence(3),
            },
        ),
        (
            3,
            Gap::Repeated {
                expected: Sequence(4),
                found: Sequence(3),
            },
        ),
    ] {
        assert_eq!(record(&*rig.log, Sequence(after)).err(), Some(gap));
    }
    let late = record(&*rig.log, Sequence(2)).unwrap();
    rig.append(&[3]).await;
    rig.append(&[4, 5]).await;
    let all = numbered(&[1, 2, 3, 4, 5]);
    assert_eq!(rig.followed(), all);
    assert_eq!(fixtures::events(&late.lock().unwrap()), all[2..]);
}

pub async fn followers_have_a_batch_before_it_is_answered(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    for n in 0..50 {
        rig.append(&[n]).await;
        assert_eq!(rig.followed().len() as u64, n + 1);
        assert_eq!(rig.log.range().head, Sequence(n + 1));
    }
}

pub async fn a_block_that_a_follower_refuses_fails_the_log(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    let gap = Gap::Missing {
        expected: Sequence(3),
        found: Sequence(4),
    };
    let refuse_third = move |block: &Arc<Block>| match block.first_sequence() {
        Sequence(3) => Err(gap),
        _ => Ok(()),
    };
    let follower = Arc::new(refuse_third);
    rig.log.follow(Sequence::ZERO, follower).unwrap();
    let waiter = tokio::spawn({
        let status = rig.log.status().clone();
        async move { status.health_where(|health| *health != Health::Ready).await }
    });
    rig.append(&[1, 2]).await;
    let Err(Error::Failed(reason)) = rig.try_append(&[3]).await else {
        panic!("the log did not fail");
    };
    assert!(reason.contains(&gap.to_string()), "{reason}");
    let failed = Health::Failed { reason };
    assert_eq!(in_time(waiter).await.unwrap(), failed);
    assert_eq!(rig.try_append(&[4]).await.err(), failed.refusal());
    assert_eq!(rig.log.range().head, Sequence(2));
    assert_eq!(rig.events().await, numbered(&[1, 2]));
    rig.log.close().await;
    assert_eq!(rig.log.status().health(), failed);
}

pub async fn a_follower_that_panics_fails_the_log(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    let follower = |_: &Arc<Block>| panic!("a bug");
    rig.log.follow(Sequence::ZERO, Arc::new(follower)).unwrap();
    let log = Arc::clone(&rig.log);
    let append = tokio::spawn(async move { log.append(fixtures::numbered("app_1", 0..1)).await });
    let appended = in_time(append).await;
    // The panic may end the task that appends.
    assert!(!matches!(appended, Ok(Ok(_))), "{appended:?}");
    let health = in_time(rig.log.status().health_where(Health::is_final)).await;
    assert!(matches!(health, Health::Failed { .. }), "{health:?}");
    assert_eq!(rig.log.range().head, Sequence::ZERO);
    assert!(matches!(rig.try_append(&[1]).await, Err(Error::Failed(_))));
    assert!(
        rig.log
            .read(Sequence::ZERO, usize::MAX)
            .await
            .unwrap()
            .is_empty()
    );
}

pub async fn those_who_wait_see_commits_and_the_end(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    let status = rig.log.status().clone();
    let head = tokio::spawn({
        let status = status.clone();
        async move { status.range_where(|range| range.head >= Sequence(3)).await }
    });
    let end = tokio::spawn(async move { status.health_where(Health::is_final).await });
    rig.append(&[1, 2]).await;
    rig.append(&[3]).await;
    assert_eq!(in_time(head).await.unwrap().unwrap().head, Sequence(3));
    assert!(!end.is_finished());
    rig.log.close().await;
    assert_eq!(in_time(end).await.unwrap(), Health::Closed);
}

pub async fn an_epoch_is_known_before_any_of_its_events(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    let status = rig.log.status().clone();
    let follower = move |block: &Arc<Block>| {
        let epochs = status.epochs();
        assert_eq!(epochs.cursor(block.first_sequence()), block.cursor(0));
        Ok(())
    };
    rig.log.follow(Sequence::ZERO, Arc::new(follower)).unwrap();
    for n in 0..20 {
        rig.append(&[n]).await;
    }
}

pub async fn a_log_that_is_unavailable_says_so_and_goes_on_later(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    let set_outage = rig.set_outage.as_ref();
    let set_outage = set_outage.expect("a factory of logs with outages makes them");
    rig.append(&[1]).await;
    set_outage(true);
    let health = rig.log.status();
    let health = in_time(health.health_where(|health| *health != Health::Ready)).await;
    assert!(matches!(health, Health::Unavailable { .. }), "{health:?}");
    let refused = rig.try_append(&[2]).await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    assert_eq!(
        rig.events().await,
        numbered(&[1]),
        "what is there can be read"
    );
    set_outage(false);
    let status = rig.log.status();
    in_time(status.health_where(|health| *health == Health::Ready)).await;
    rig.append(&[1, 2]).await;
    assert_eq!(rig.events().await, numbered(&[1, 2]));
    assert_eq!(rig.followed(), numbered(&[1, 2]));
}
