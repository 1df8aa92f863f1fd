//! Owns following: all confirmed commits from a position on, in order and without holes. Knows nothing of
//! how connections are made.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use prelude_bridge_log::sequencer::{Outage, Position};
use tokio::sync::watch;

use crate::{
    link::{FIRST, Link},
    links::Links,
    table,
};

type Commit = (Position, Bytes);

/// Who follows, and what it has read and not passed on.
struct Follower {
    link: Arc<Link>,
    confirmed: watch::Receiver<i64>,
    seen: watch::Receiver<i64>,
    next: i64,
    read: VecDeque<(i64, Bytes)>,
}

enum Follow {
    Begins(Arc<Links>, Position),
    Goes(Box<Follower>),
    Ended,
}

pub(crate) fn follow(
    links: Arc<Links>,
    from: Position,
) -> BoxStream<'static, Result<Commit, Outage>> {
    stream::unfold(Follow::Begins(links, from.max(FIRST)), |follow| async {
        let mut follower = match follow {
            Follow::Ended => return None,
            Follow::Goes(follower) => follower,
            Follow::Begins(links, from) => match Follower::begin(&links, from).await {
                Ok(follower) => Box::new(follower),
                Err(outage) => return Some((Err(outage), Follow::Ended)),
            },
        };
        match follower.next().await {
            Ok(commit) => Some((Ok(commit), Follow::Goes(follower))),
            Err(outage) => Some((Err(outage), Follow::Ended)),
        }
    })
    .boxed()
}

impl Follower {
    async fn begin(links: &Links, from: Position) -> Result<Self, Outage> {
        let link = links.current().await?;
        // What was there before this connection is confirmed once, not by who wrote it.
        let (first, _) = link.confirm().await?;
        let next = table::number(from);
        if next < first {
            return Err(Outage::Removed {
                first: table::position(first),
            });
        }
        Ok(Self {
            confirmed: link.confirmed(),
            seen: link.seen(),
            link,
            next,
            read: VecDeque::new(),
        })
    }

    async fn next(&mut self) -> Result<Commit, Outage> {
        while self.read.is_empty() {
            self.wait().await?;
            let to = *self.confirmed.borrow();
            self.read = self.link.read(self.next, to).await?.into();
            if self.read.is_empty() {
                return Err(self.missing().await);
            }
        }
        match self.read.pop_front() {
            Some((number, commit)) if number == self.next => {
                self.next += 1;
                Ok((table::position(number), commit))
            }
            _ => Err(self.missing().await),
        }
    }

    /// Returns when the next commit is there, and confirmed.
    async fn wait(&mut self) -> Result<(), Outage> {
        loop {
            let seen = *self.seen.borrow_and_update();
            if *self.confirmed.borrow_and_update() >= self.next {
                return Ok(());
            }
            if seen >= self.next {
                // Its writer has not announced it: lost its connection, or stopped.
                let (_, last) = self.link.confirm().await?;
                if last < self.next {
                    return Err(self.missing().await);
                }
                continue;
            }
            tokio::select! {
                _ = self.confirmed.changed() => {}
                _ = self.seen.changed() => {}
                outage = self.link.ended() => return Err(outage),
            }
        }
    }

    /// Why a commit is not there that was confirmed.
    async fn missing(&self) -> Outage {
        match self.link.confirm().await {
            Err(outage) => outage,
            Ok((first, _)) if first > self.next => Outage::Removed {
                first: table::position(first),
            },
            Ok((first, last)) => self.link.damaged(&format!(
                "position {} is missing between {first} and {last}: somebody has removed rows; \
                 restore the table from a backup",
                self.next
            )),
        }
    }
}
