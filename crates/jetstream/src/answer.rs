//! Owns what an answer to an append means. Pure.

use prelude_bridge_log::sequencer::{Outage, Position};

use crate::{
    api::{ApiError, PublishAck, code},
    options::Names,
};

/// What is known after an append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The commit is at its position.
    Won,
    /// The condition was not met, or not seen to be met. Names the last position, where it is told.
    Refused { last: Option<u64> },
    /// Anything else.
    Outage(Outage),
}

pub(crate) fn interpret(payload: &[u8], position: Position, names: &Names) -> Answer {
    let Ok(ack) = serde_json::from_slice::<PublishAck>(payload) else {
        let what = format!(
            "{} answers a commit with what is not understood",
            names.whole
        );
        return Answer::Outage(Outage::Unavailable(what.into()));
    };
    if let Some(error) = ack.error {
        return refused(&error, names);
    }
    if ack.stream != names.stream {
        return Answer::Outage(other_stream(names));
    }
    // Stored, but not where it was meant: the server has not looked at the condition, or the sequence went
    // back under us. What is at the position decides.
    if ack.seq != position.0 || ack.duplicate {
        return Answer::Refused {
            last: Some(ack.seq),
        };
    }
    Answer::Won
}

fn refused(error: &ApiError, names: &Names) -> Answer {
    let ApiError {
        err_code,
        description,
    } = error;
    let whole = &names.whole;
    let full =
        |what: &str| Answer::Outage(Outage::Full(format!("{whole} has no room: {what}").into()));
    match *err_code {
        code::WRONG_LAST_SEQUENCE => Answer::Refused {
            // "wrong last sequence: 7"
            last: description.rsplit(' ').next().and_then(|last| last.parse().ok()),
        },
        code::WRONG_LAST_SEQUENCE_IN_FLIGHT => Answer::Refused { last: None },
        code::ACCOUNT_LIMITS => full("the account has reached its limit (max_storage)"),
        code::INSUFFICIENT_RESOURCES | code::STORAGE_EXCEEDED => {
            full("a server has reached its limit (max_file_store), or its disk is full")
        }
        // Only limits of the stream are known before anything is stored.
        code::STORE_FAILED if description.contains("maximum") => full(description),
        code::MESSAGE_TOO_LARGE => Answer::Outage(Outage::Unusable(
            format!(
                "{whole} refuses a commit as too large: run `nats stream edit {} --max-msg-size=-1`",
                names.stream
            )
            .into(),
        )),
        code::SEALED => Answer::Outage(Outage::Unusable(
            format!("{whole} is sealed, which cannot be undone: use another stream").into(),
        )),
        code::OTHER_STREAM => Answer::Outage(other_stream(names)),
        _ => Answer::Outage(Outage::Unavailable(
            format!("{whole} does not take a commit: {description} (error {err_code})").into(),
        )),
    }
}

fn other_stream(names: &Names) -> Outage {
    Outage::Unusable(
        format!(
            "another stream than {} has the subject {}: {} is gone",
            names.stream, names.commits, names.whole
        )
        .into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::test_options;

    fn answer(payload: &str) -> Answer {
        interpret(
            payload.as_bytes(),
            Position(7),
            &Names::new(&test_options()),
        )
    }

    fn error(code: u64, description: &str) -> Answer {
        answer(&format!(
            r#"{{"error":{{"code":400,"err_code":{code},"description":"{description}"}},"stream":"prelude-bridge","seq":0}}"#
        ))
    }

    #[test]
    fn only_the_position_that_was_meant_is_won() {
        assert_eq!(
            answer(r#"{"stream":"prelude-bridge","seq":7}"#),
            Answer::Won
        );
        for (seq, more) in [(6, ""), (8, ""), (7, r#","duplicate":true"#)] {
            let said = answer(&format!(
                r#"{{"stream":"prelude-bridge","seq":{seq}{more}}}"#
            ));
            assert_eq!(said, Answer::Refused { last: Some(seq) });
        }
        let said = answer(r#"{"stream":"other","seq":7}"#);
        assert!(
            matches!(said, Answer::Outage(Outage::Unusable(_))),
            "{said:?}"
        );
        for payload in ["", "{", "[]", "null", r#"{"seq":"7"}"#] {
            let said = answer(payload);
            assert!(
                matches!(said, Answer::Outage(Outage::Unavailable(_))),
                "{payload}: {said:?}"
            );
        }
        let said = answer("{}");
        assert!(
            matches!(said, Answer::Outage(Outage::Unusable(_))),
            "{said:?}"
        );
    }

    #[test]
    fn each_code_has_its_outcome() {
        assert_eq!(
            error(10071, "wrong last sequence: 12"),
            Answer::Refused { last: Some(12) }
        );
        assert_eq!(
            error(10071, "wrong last sequence"),
            Answer::Refused { last: None }
        );
        assert_eq!(
            error(10164, "wrong last sequence"),
            Answer::Refused { last: None }
        );
        for (code, description) in [
            (10002, "resource limits exceeded for account"),
            (10023, "insufficient resources"),
            (10047, "insufficient storage resources available"),
            (10077, "maximum bytes exceeded"),
        ] {
            let said = error(code, description);
            assert!(
                matches!(said, Answer::Outage(Outage::Full(_))),
                "{code}: {said:?}"
            );
        }
        for code in [10054, 10060, 10109] {
            let said = error(code, "…");
            assert!(
                matches!(said, Answer::Outage(Outage::Unusable(_))),
                "{code}: {said:?}"
            );
        }
        // A write that failed may have been stored by the other replicas.
        for (code, description) in [
            (10077, "input/output error"),
            (10008, "unavailable"),
            (10009, "…"),
            (1, "…"),
        ] {
            let said = error(code, description);
            assert!(
                matches!(said, Answer::Outage(Outage::Unavailable(_))),
                "{code}: {said:?}"
            );
        }
    }
}
