//! What a log has to hold after a loss of power, and whether it does.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
};

use prelude_bridge::{
    event::{
        Sequence,
        block::{Block, Format},
        testing,
    },
    log::{Log as _, embedded},
    proto::SubscribeResponse,
};
use prost::Message as _;
use tokio::runtime::Runtime;

use super::recording::EVENT_TYPE;
use crate::support::APP;

/// What is read of a log at once: about what a segment has in these tests.
const READ_BYTES_MAX: usize = 64 * 1024;

/// What was promised to the sender and to subscribers, at the moment of a loss.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Promise {
    /// Events that were sent, in the order of the log.
    pub(crate) ids: Vec<String>,
    /// The numbers of events after which a batch may end.
    pub(crate) ends: Vec<usize>,
    /// So many of the events were answered with 200, or shown to a subscriber.
    pub(crate) kept: usize,
    /// Retention may have removed what is before this event.
    pub(crate) earliest_max: u64,
}

/// What was found in a log.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// How many events it ever had.
    pub(crate) head: usize,
}

/// Opens the log in a directory, and says what is wrong with it. Appends an event to it.
pub(crate) fn check(runtime: &Runtime, dir: &Path, promise: &Promise) -> Result<Found, String> {
    let checking = || runtime.block_on(check_open(dir, promise));
    let checked = catch_unwind(AssertUnwindSafe(checking));
    checked.unwrap_or_else(|_| Err("it panicked".to_owned()))
}

async fn check_open(dir: &Path, promise: &Promise) -> Result<Found, String> {
    let options = || embedded::Options {
        readers: 1,
        ..embedded::Options::default()
    };
    let log = embedded::open(dir, options()).map_err(|error| error.to_string())?;
    let found = check_events(&log, promise).await?;
    // What was answered is known, whether it is still there or not.
    append(&log, &promise.ids[..found.head], 0, found.head).await?;
    append(&log, &["evt_after_the_loss".to_owned()], 1, 0).await?;
    let range = log.range();
    if range.head.0 != found.head as u64 + 1 {
        return Err(format!("the next event has number {}", range.head));
    }
    log.close().await;
    Ok(found)
}

async fn check_events(log: &embedded::Embedded, promise: &Promise) -> Result<Found, String> {
    let range = log.range();
    let (earliest, head) = (range.earliest.0, usize::try_from(range.head.0).unwrap());
    if earliest > promise.earliest_max {
        return Err(format!(
            "it begins with event {earliest}, not {}",
            promise.earliest_max
        ));
    }
    if head < promise.kept {
        return Err(format!("it ends with event {head}, not {}", promise.kept));
    }
    if head != 0 && !promise.ends.contains(&head) {
        return Err(format!("it ends with event {head}, in a batch"));
    }
    let (mut next, mut last_at) = (earliest, (0, 0));
    while next <= range.head.0 {
        let blocks = log.read(Sequence(next - 1), READ_BYTES_MAX).await;
        let blocks = blocks.map_err(|error| format!("after {}: {error}", next - 1))?;
        for event in blocks.iter().flat_map(events) {
            // The first block may begin before the place.
            if event.sequence < next {
                continue;
            }
            let at = event.received_at.unwrap_or_default();
            let at = (at.seconds, at.nanos);
            if at < last_at {
                return Err(format!(
                    "event {next} was received before the one before it"
                ));
            }
            let number = usize::try_from(next).unwrap();
            if event.sequence != next || event.id != promise.ids[number - 1] {
                return Err(format!("event {next} is another one"));
            }
            last_at = at;
            next += 1;
        }
    }
    Ok(Found { head })
}

fn events(block: &Arc<Block>) -> Vec<prelude_bridge::proto::Event> {
    let all = block.view(Format::Typed).slice(0..block.entries().len());
    SubscribeResponse::decode(all).unwrap().events
}

async fn append(
    log: &embedded::Embedded,
    ids: &[String],
    accepted: usize,
    duplicates: usize,
) -> Result<(), String> {
    let events = ids.iter().map(|id| (id.as_str(), EVENT_TYPE, ""));
    let events: Vec<(&str, &str, &str)> = events.collect();
    // Events with this content were never sent, which a duplicate is whatever its content.
    match log.append(testing::batch(APP, &events)).await {
        Ok(appended) if (appended.accepted, appended.duplicates) == (accepted, duplicates) => {
            Ok(())
        }
        other => Err(format!(
            "{other:?}: not {accepted} new ones and {duplicates} duplicates"
        )),
    }
}
