//! Decides which notices are reported on stderr. Pure.

use super::{Output, printer::Remark};
use crate::client::Notice;

/// Turns notices into remarks for the person at the terminal or for a log.
pub(super) struct Narrator {
    output: Output,
    was_interrupted: bool,
    was_caught_up: bool,
}

impl Narrator {
    pub(super) fn new(output: Output) -> Self {
        Self {
            output,
            was_interrupted: false,
            was_caught_up: false,
        }
    }

    /// The remark about a notice, if there is one.
    pub(super) fn remark(&mut self, notice: &Notice) -> Option<Remark> {
        match notice {
            // Should the next attempt fail, that is said.
            _ if notice.is_planned() => None,
            Notice::Reconnecting { .. } => {
                self.was_interrupted = true;
                Some(Remark::Warning(notice.to_string()))
            }
            Notice::Skipped(_) | Notice::FellBehind(_) | Notice::Draining(_) => {
                Some(Remark::Warning(notice.to_string()))
            }
            Notice::Started(started) if self.was_interrupted => {
                self.was_interrupted = false;
                let place = started.after_sequence;
                Some(Remark::Plain(format!("reconnected, after event {place}")))
            }
            // At a terminal, silence could look like a failure. Said once.
            Notice::CaughtUp(_) if self.output == Output::Human && !self.was_caught_up => {
                self.was_caught_up = true;
                Some(Remark::Plain(
                    "waiting for new events; Ctrl-C ends".to_owned(),
                ))
            }
            // The same for notices that a later client library adds.
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        client::Error,
        proto::{CaughtUp, Draining, FellBehind, Progress, SkipReason, Skipped, Started},
    };

    fn said(output: Output, notices: &[Notice]) -> Vec<Option<Remark>> {
        let mut narrator = Narrator::new(output);
        notices
            .iter()
            .map(|notice| narrator.remark(notice))
            .collect()
    }

    fn warning(text: &str) -> Option<Remark> {
        Some(Remark::Warning(text.to_owned()))
    }

    #[test]
    fn what_happens_to_the_stream_is_told() {
        let broken = Error::Interrupted {
            reason: None,
            message: "connection refused".into(),
            retry_after: None,
        };
        let notices = [
            Notice::Started(Started::default()),
            Notice::Progress(Progress::default()),
            Notice::FellBehind(FellBehind {
                sequence: 5,
                head_sequence: 9,
            }),
            Notice::Skipped(Skipped {
                first_sequence: 6,
                last_sequence: 7,
                reason: SkipReason::Expired.into(),
            }),
            Notice::Skipped(Skipped {
                first_sequence: 8,
                last_sequence: 9,
                reason: SkipReason::Damaged.into(),
            }),
            Notice::Draining(Draining::default()),
            Notice::Reconnecting {
                error: broken,
                delay: Duration::from_millis(1500),
            },
            Notice::Started(Started {
                after_sequence: 7,
                ..Started::default()
            }),
        ];
        assert_eq!(
            said(Output::Json, &notices),
            [
                None,
                None,
                warning("fell 4 events behind; nothing is lost"),
                warning("events 6 to 7 were removed by retention before they could be sent"),
                warning(
                    "events 8 to 9 are damaged on the bridge's disk, and are left out as requested",
                ),
                warning("the server is about to shut down"),
                warning("connection refused; resuming in 1.5 s"),
                Some(Remark::Plain("reconnected, after event 7".into())),
            ]
        );
    }

    #[test]
    fn a_stream_that_reaches_its_age_is_not_worth_a_word_unless_the_next_attempt_fails() {
        let draining =
            |retry_after: Option<prost_types::Duration>| Notice::Draining(Draining { retry_after });
        let reconnecting = |reason: Option<&str>, retry_after: Option<Duration>| {
            let error = Error::Interrupted {
                reason: reason.map(str::to_owned),
                message: "broken".into(),
                retry_after,
            };
            let delay = Duration::from_millis(1500);
            Notice::Reconnecting { error, delay }
        };
        let notices = [
            draining(Some(prost_types::Duration::default())),
            reconnecting(Some("DRAINING"), Some(Duration::ZERO)),
            Notice::Started(Started::default()),
            reconnecting(Some("DRAINING"), Some(Duration::ZERO)),
            reconnecting(None, None),
            Notice::Started(Started::default()),
            draining(Some(prost_types::Duration {
                seconds: 0,
                nanos: 1,
            })),
            reconnecting(Some("DRAINING"), Some(Duration::from_nanos(1))),
            reconnecting(Some("CREDENTIAL_CHANGED"), Some(Duration::ZERO)),
        ];
        let broken = || warning("broken; resuming in 1.5 s");
        assert_eq!(
            said(Output::Human, &notices),
            [
                None,
                None,
                None,
                None,
                broken(),
                Some(Remark::Plain("reconnected, after event 0".into())),
                warning("the server is about to shut down"),
                broken(),
                broken(),
            ]
        );
    }

    #[test]
    fn only_people_are_told_that_there_is_nothing_new() {
        let caught_up = || Notice::CaughtUp(CaughtUp::default());
        assert_eq!(said(Output::Json, &[caught_up()]), [None]);
        let human = said(Output::Human, &[caught_up(), caught_up()]);
        assert!(human[0].is_some() && human[1].is_none());
    }
}
