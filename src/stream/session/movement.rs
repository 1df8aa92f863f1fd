//! Owns how a session moves along the log: the next block that may have something for it, from what
//! was read, from the window of the bus, or from the log.

use std::{ops::Range, sync::Arc};

use super::{Found, Moved, Phase, READ_BYTES_MAX, Session, skip};
use crate::{
    bus::{self, Extract},
    event::Sequence,
    log::{Block, Gap, ReadError},
    stream::notice,
};

impl Session {
    /// One step along the log. Never waits.
    pub(super) fn step(&mut self) -> Moved {
        if self.position >= self.bounds.last {
            return self.finish();
        }
        if let Some(block) = self.history.pop_front() {
            return match Gap::check_reaches(self.position, &block) {
                Ok(()) => self.examine(block, None),
                Err(gap) => {
                    let error = ReadError::Failed(gap.to_string().into());
                    self.end = Some(Err(self.unreadable(&error)));
                    Moved::Ready
                }
            };
        }
        match self.subscriber.next(self.position) {
            bus::Next::Block(block) => {
                let extract = self.subscriber.extract(&block, self.plan.format);
                self.examine(block, extract)
            }
            bus::Next::AtHead(head) if head > self.position => {
                self.position = head.min(self.bounds.last);
                Moved::On
            }
            bus::Next::AtHead(_) => self.at_head(),
            bus::Next::Behind => {
                if self.phase == Phase::Live {
                    self.phase = Phase::History;
                    self.notices
                        .push_back(notice::fell_behind(self.position, self.head()));
                    return Moved::Ready;
                }
                Moved::Read
            }
        }
    }

    /// Looks for matching events in a block, after the place and within bounds.
    fn examine(&mut self, block: Arc<Block>, extract: Option<Arc<Extract>>) -> Moved {
        if self
            .bounds
            .before
            .is_some_and(|before| block.received_at() >= before)
        {
            return self.finish();
        }
        let last = block.last_sequence().min(self.bounds.last);
        let first = block.first_sequence();
        let index = |sequence: Sequence| {
            usize::try_from(sequence.0.saturating_sub(first.0)).unwrap_or(usize::MAX)
        };
        let end = index(last.plus(1));
        let from = index(self.position.plus(1));
        // An extract is of the whole block.
        let extract = extract.filter(|_| from == 0 && last == block.last_sequence());
        let run = if block.received_at() < self.bounds.not_before {
            None
        } else if let Some(extract) = &extract {
            Some(0..extract.view().len()).filter(|run| !run.is_empty())
        } else {
            clip(self.plan.filter.select(&block).next_run(from), end)
        };
        let Some(run) = run else {
            self.position = self.position.max(last);
            return Moved::On;
        };
        let index = match &extract {
            Some(extract) => extract.index(run.start).unwrap_or(end),
            None => run.start,
        };
        self.position = first.plus(index as u64).before();
        self.found = Some(Found {
            block,
            run,
            end,
            extract,
        });
        Moved::Ready
    }

    pub(super) fn at_head(&mut self) -> Moved {
        if self.phase == Phase::History {
            self.phase = Phase::Live;
            self.notices.push_back(notice::caught_up(self.position));
            return Moved::Ready;
        }
        if self.stop_time_left().is_some_and(|left| left.is_zero()) {
            return self.finish();
        }
        Moved::Wait
    }

    pub(super) async fn read(&mut self) {
        match self.shared.log.read(self.position, READ_BYTES_MAX).await {
            // Not to be expected below the head. Waiting keeps it from becoming a busy loop.
            Ok(blocks) if blocks.is_empty() => self.wait().await,
            Ok(blocks) => self.history.extend(blocks),
            Err(ReadError::Expired { .. }) => {
                let range = self.shared.range();
                match skip(&self.shared, &range, self.position, self.plan.on_expired) {
                    Ok((position, notice)) => {
                        self.position = position;
                        self.notices.push_back(notice);
                    }
                    Err(failure) => self.end = Some(Err(failure)),
                }
            }
            Err(error @ (ReadError::Failed(_) | ReadError::Unavailable(_))) => {
                self.end = Some(Err(self.unreadable(&error)));
            }
        }
    }
}

/// The part of a run before `end`, if there is any.
pub(super) fn clip(run: Option<Range<usize>>, end: usize) -> Option<Range<usize>> {
    run.map(|run| run.start..run.end.min(end))
        .filter(|run| !run.is_empty())
}
