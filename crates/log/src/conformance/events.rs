//! What appending and reading promise.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{ALL, Factory, Keep, Rig, START, numbered, waits_until};
use crate::{Appended, Error, Health, ReadError};
use prelude_bridge_event::{Batch, EventKey, Sequence, UnixMicros, testing as fixtures};

pub async fn a_new_log_is_empty(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    let range = rig.log.range();
    assert_eq!((range.earliest, range.head), (Sequence(1), Sequence(0)));
    assert_eq!((range.earliest_at, range.head_at), (None, None));
    assert_eq!(range.event_count(), 0);
    assert!(rig.log.read(Sequence(0), ALL).await.unwrap().is_empty());
    assert_eq!(rig.log.seek(UnixMicros(0)).await, Ok(Sequence(0)));
    assert_eq!(rig.log.status().health(), Health::Ready);
}

pub async fn events_are_numbered_in_order_without_holes(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    for numbers in [&[5, 3][..], &[9], &[1, 2, 4]] {
        let appended = rig.append(numbers).await;
        assert_eq!(appended.accepted, numbers.len());
    }
    let expected = numbered(&[5, 3, 9, 1, 2, 4]);
    assert_eq!(rig.events().await, expected);
    assert_eq!(rig.followed(), expected);
    let range = rig.log.range();
    assert_eq!((range.earliest, range.head), (Sequence(1), Sequence(6)));
    assert_eq!(range.head_at, Some(START));
    let after = rig.log.read(Sequence(3), ALL).await.unwrap();
    assert_eq!(fixtures::events(&after), expected[3..]);
    assert!(rig.log.read(Sequence(6), ALL).await.unwrap().is_empty());
}

pub async fn concurrent_appends_have_one_order_which_all_see(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    let appends: Vec<_> = (0..200)
        .map(|n| {
            let log = Arc::clone(&rig.log);
            tokio::spawn(async move {
                let batch = fixtures::numbered("app_1", n * 3..n * 3 + 3);
                log.append(batch).await.unwrap()
            })
        })
        .collect();
    for append in appends {
        assert_eq!(append.await.unwrap().accepted, 3);
    }
    let events = rig.events().await;
    assert_eq!(events, rig.followed());
    assert!(events.iter().map(|&(sequence, _)| sequence).eq(1..=600));
    for batch in events.chunks(3) {
        let numbers: Vec<u64> = batch
            .iter()
            .map(|(_, id)| id["evt_".len()..].parse().unwrap())
            .collect();
        assert_eq!(numbers[0] % 3, 0, "a batch is in one piece");
        assert_eq!(numbers, [numbers[0], numbers[0] + 1, numbers[0] + 2]);
    }
}

pub async fn repetitions_are_left_out(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    let both = |accepted, duplicates| Appended {
        accepted,
        duplicates,
        ..Appended::default()
    };
    assert_eq!(rig.append(&[1, 2, 1, 3, 2]).await, both(3, 2));
    assert_eq!(rig.append(&[3, 4]).await, both(1, 1));
    assert_eq!(rig.append(&[1, 2, 3, 4]).await, both(0, 4));
    assert_eq!(rig.events().await, numbered(&[1, 2, 3, 4]));

    // Together, so that they meet in one group.
    let appends: Vec<_> = (0..50)
        .map(|_| rig.log.append(fixtures::numbered("app_1", 100..110)))
        .collect();
    let mut accepted = 0;
    for append in appends {
        accepted += append.await.unwrap().accepted;
    }
    assert_eq!(accepted, 10);
    assert_eq!(rig.log.range().head, Sequence(14));
}

pub async fn what_was_appended_is_remembered_and_asking_changes_nothing(factory: &dyn Factory) {
    let keep = Keep {
        age: Duration::from_secs(640),
        ..Keep::default()
    };
    let rig = Rig::keeping(factory, keep);
    let keys = |app, numbers: &[u64]| {
        let batch = fixtures::numbered_list(app, numbers);
        batch.drafts.iter().map(|draft| draft.key).collect()
    };
    let remembers_of = async |app, numbers: &[u64]| {
        let known = rig.log.recall(keys(app, numbers)).await;
        known.map(|known| known.iter().all(Option::is_some))
    };
    let remembers = async |numbers: &[u64]| remembers_of("app_1", numbers).await;
    assert_eq!(remembers(&[1]).await, Ok(false));
    assert_eq!(remembers(&[]).await, Ok(true));
    rig.append(&[1, 2, 3]).await;
    for (numbers, are_known) in [
        (&[1, 2, 3][..], true),
        (&[3, 1, 3], true),
        (&[4], false),
        (&[1, 2, 3, 4], false),
        (&[4, 1], false),
    ] {
        assert_eq!(remembers(numbers).await, Ok(are_known), "{numbers:?}");
    }
    assert_eq!(remembers_of("app_2", &[1]).await, Ok(false));
    assert_eq!(rig.log.range().head, Sequence(3));
    assert_eq!(rig.append(&[4]).await.accepted, 1, "it was only asked for");
    rig.pass(Duration::from_secs(700));
    rig.append(&[5]).await;
    rig.range_where(|range| range.earliest == Sequence(5)).await;
    assert_eq!(remembers(&[1, 4]).await, Ok(true), "ids outlive events");
    // What is in line before the question is known to it.
    let appended = rig.log.append(fixtures::numbered("app_1", 10..13));
    let keys = keys("app_1", &[10, 11, 12]);
    let known = rig.log.recall(keys.clone());
    assert_eq!(appended.await.unwrap().accepted, 3);
    let known: Vec<_> = known.await.unwrap().into_iter().flatten().collect();
    assert_eq!(known, keys);
    rig.log.close().await;
    assert_eq!(remembers(&[1]).await, Err(Error::Closed));
}

pub async fn the_same_id_of_another_app_is_another_event(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    rig.append(&[1]).await;
    let other = rig.log.append(fixtures::numbered("app_2", 1..2)).await;
    assert_eq!(other.unwrap().accepted, 1);
}

pub async fn the_same_id_of_another_type_is_another_event(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    let types = ["user.created", "user.deleted", "", "User.created"];
    for event_type in types {
        let batch = fixtures::batch("app_1", &[("evt_1", event_type, "")]);
        let appended = rig.log.append(batch).await.unwrap();
        assert_eq!((appended.accepted, appended.duplicates), (1, 0));
    }
    let all: Vec<_> = types.iter().map(|of| ("evt_1", *of, "")).collect();
    let appended = rig.log.append(fixtures::batch("app_1", &all)).await;
    let appended = appended.unwrap();
    assert_eq!((appended.duplicates, appended.changed), (4, 0));
    assert_eq!(rig.events().await.len(), 4);
}

/// Events of these numbers that say something else than [`fixtures::numbered_list`] has them say.
fn changed(numbers: &[u64]) -> Batch {
    let mut batch = fixtures::numbered_list("app_1", numbers);
    for (draft, n) in batch.drafts.iter_mut().zip(numbers) {
        let id = format!("evt_{n}");
        draft.key = EventKey::new("app_1", &id, &draft.event_type, b"other");
    }
    batch
}

pub async fn a_duplicate_with_another_content_is_told(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    rig.append(&[1, 2, 3]).await;
    let told = |appended: Appended| {
        let Appended {
            accepted,
            duplicates,
            changed,
            changed_id,
        } = appended;
        ((accepted, duplicates, changed), changed_id)
    };
    let again = rig.append(&[1, 2]).await;
    assert_eq!(told(again), ((0, 2, 0), None), "the same");
    let other = rig.log.append(changed(&[4, 3, 2])).await.unwrap();
    assert_eq!(told(other), ((1, 2, 2), Some("evt_3".into())));
    // What is in the log stays, and so does what it is compared with.
    let first = rig.append(&[2, 3, 4]).await;
    assert_eq!(told(first), ((0, 3, 1), Some("evt_4".into())));
    // Both within one batch.
    let mut both = changed(&[5, 5]);
    both.drafts[1].key = fixtures::numbered("app_1", 5..6).drafts[0].key;
    let both = rig.log.append(both).await.unwrap();
    assert_eq!(told(both), ((1, 1, 1), Some("evt_5".into())));
    assert_eq!(rig.events().await, numbered(&[1, 2, 3, 4, 5]));
}

pub async fn a_place_can_be_found_by_its_time(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    for n in 0..30 {
        rig.append(&[n * 2, n * 2 + 1]).await;
        rig.pass(Duration::from_micros(10));
    }
    for n in 0..30 {
        let at = UnixMicros(START.0 + i64::try_from(n * 10).unwrap());
        assert_eq!(rig.log.seek(at).await, Ok(Sequence(n * 2)));
        let later = UnixMicros(at.0 + 1);
        assert_eq!(rig.log.seek(later).await, Ok(Sequence(n * 2 + 2)));
    }
    assert_eq!(rig.log.seek(UnixMicros(0)).await, Ok(Sequence(0)));
    assert_eq!(rig.log.seek(UnixMicros(i64::MAX)).await, Ok(Sequence(60)));
}

pub async fn time_never_goes_back(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    rig.append(&[1]).await;
    rig.clock.0.fetch_sub(1_000_000, Ordering::SeqCst);
    rig.append(&[2]).await;
    let followed = rig.followed.lock().unwrap();
    assert_eq!(followed[1].received_at(), START);
}

pub async fn reading_ends_at_its_limit_but_brings_at_least_one_block(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    for n in 0..10 {
        rig.append(&[n]).await;
    }
    let block_bytes = rig.followed.lock().unwrap()[0].as_bytes().len();
    for (bytes_max, blocks) in [(0, 1), (block_bytes * 3, 3), (block_bytes * 3 + 1, 3)] {
        let read = rig.log.read(Sequence(2), bytes_max).await.unwrap();
        assert_eq!(read.len(), blocks);
        assert_eq!(read[0].first_sequence(), Sequence(3));
    }
}

pub async fn a_large_batch_becomes_several_blocks(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    let numbers: Vec<u64> = (0..20_000).collect();
    rig.append(&numbers).await;
    assert_eq!(rig.events().await, numbered(&numbers));
    assert!(rig.followed.lock().unwrap().len() >= 3);
    let inside = rig.log.read(Sequence(10_000), 1).await.unwrap();
    assert!(inside[0].first_sequence() <= Sequence(10_001));
    assert!(inside[0].last_sequence() >= Sequence(10_001));
}

pub async fn what_is_too_old_expires(factory: &dyn Factory) {
    let keep = Keep {
        age: Duration::from_secs(640),
        ..Keep::default()
    };
    let rig = Rig::keeping(factory, keep);
    rig.append(&[1, 2]).await;
    rig.pass(Duration::from_secs(600));
    rig.append(&[3]).await;
    rig.pass(Duration::from_secs(100));
    rig.append(&[4]).await;
    rig.range_where(|range| range.earliest == Sequence(3)).await;
    let expired = ReadError::Expired {
        earliest: Sequence(3),
    };
    for after in [0, 1] {
        let read = rig.log.read(Sequence(after), ALL).await;
        assert_eq!(read.unwrap_err(), expired);
    }
    assert_eq!(rig.events().await, numbered(&[1, 2, 3, 4])[2..]);
    assert_eq!(rig.log.seek(UnixMicros(0)).await, Ok(Sequence(2)));
    let earliest_at = UnixMicros(START.0 + 600_000_000);
    assert_eq!(rig.log.range().earliest_at, Some(earliest_at));
    assert_eq!(
        rig.append(&[1, 2]).await.duplicates,
        2,
        "ids outlive events"
    );
}

pub async fn what_is_too_much_expires(factory: &dyn Factory) {
    let keep = Keep {
        bytes: 300_000,
        ..Keep::default()
    };
    let rig = Rig::keeping(factory, keep);
    for n in 0..100 {
        let numbers: Vec<u64> = (n * 100..n * 100 + 100).collect();
        rig.append(&numbers).await;
    }
    waits_until(async || {
        // The oldest may go between one look and the next.
        let range = rig.log.range();
        let Ok(blocks) = rig.log.read(range.earliest.before(), ALL).await else {
            return false;
        };
        let events = fixtures::events(&blocks);
        // More may go while it is read: then the events before them are all there is.
        let is_whole = events.last().is_some_and(|&(last, _)| last == 10_000);
        is_whole && range.event_count() < 5_000 && events.len() as u64 == range.event_count()
    })
    .await;
}

pub async fn a_log_that_expired_whole_goes_on(factory: &dyn Factory) {
    let keep = Keep {
        age: Duration::from_secs(10),
        ..Keep::default()
    };
    let rig = Rig::keeping(factory, keep);
    rig.append(&[1, 2]).await;
    rig.pass(Duration::from_secs(100));
    // The memory log looks only when something is appended.
    rig.append(&[]).await;
    let range = rig.range_where(|range| range.event_count() == 0).await;
    assert_eq!((range.earliest, range.head), (Sequence(3), Sequence(2)));
    assert_eq!((range.earliest_at, range.head_at), (None, None));
    assert!(rig.log.read(Sequence(2), ALL).await.unwrap().is_empty());
    let read = rig.log.read(Sequence(0), ALL).await;
    let earliest = Sequence(3);
    assert_eq!(read.unwrap_err(), ReadError::Expired { earliest });
    assert_eq!(rig.log.seek(UnixMicros(0)).await, Ok(Sequence(2)));
    rig.append(&[3]).await;
    assert_eq!(rig.events().await, [(3, "evt_3".to_owned())]);
}

pub async fn a_closed_log_refuses_and_can_be_read(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    let last = rig.log.append(fixtures::numbered("app_1", 0..3));
    rig.log.close().await;
    assert_eq!(last.await.unwrap().accepted, 3, "what waits is written");
    let refused = rig.log.append(fixtures::numbered("app_1", 3..4)).await;
    assert_eq!(refused, Err(Error::Closed));
    assert_eq!(rig.log.status().health(), Health::Closed);
    assert_eq!(rig.events().await, numbered(&[0, 1, 2]));
    rig.log.close().await;
}

pub async fn an_append_goes_on_when_nobody_waits_for_it(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    drop(rig.log.append(fixtures::numbered("app_1", 0..3)));
    rig.range_where(|range| range.head == Sequence(3)).await;
    assert_eq!(rig.append(&[0, 1, 2]).await.duplicates, 3);
}

pub async fn an_empty_batch_is_nothing(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    assert_eq!(rig.append(&[]).await, Appended::default());
    assert_eq!(rig.log.range().head, Sequence(0));
    assert!(rig.followed.lock().unwrap().is_empty());
}

pub async fn cursors_of_the_log_belong_to_it(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    rig.append(&[1, 2]).await;
    let epochs = rig.log.status().epochs();
    let mut cursors = rig.log.status().cursors();
    let blocks = rig.log.read(Sequence(0), ALL).await.unwrap();
    for (index, sequence) in [1, 2].map(Sequence).into_iter().enumerate() {
        let cursor = blocks[0].cursor(index);
        assert_eq!(cursor, epochs.cursor(sequence));
        assert_eq!(cursor, cursors.at(sequence));
        assert_eq!(epochs.check(cursor, rig.log.range().head), Ok(sequence));
    }
}

pub async fn usage_grows_with_what_is_kept(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    let before = rig.log.usage().stored_bytes;
    let numbers: Vec<u64> = (0..5_000).collect();
    rig.append(&numbers).await;
    waits_until(async || rig.log.usage().stored_bytes > before + 100_000).await;
    assert_eq!(rig.log.usage().queued_batches, 0);
}
