//! Owns the meaning of a `SubscribeRequest`: what was typed becomes a plan, or the failure that
//! says what is wrong. Pure; knows nothing of the state of the log.

use std::time::Duration;

use super::status::Failure;
use crate::{
    credentials::Grant,
    event::{Cursor, UnixMicros},
    filter::{self, Filter},
    log::Format,
    plain,
    proto::{
        DamagedPolicy, ExpiredCursorPolicy, PayloadFormat, StartPosition, StopPosition,
        SubscribeRequest, start_position::Position as Start, stop_position::Position as Stop,
    },
    subscription::{OnDamaged, OnExpired, Plan, StartAt, StopAt},
};

/// The shortest interval between progress notices: shorter would be a busy loop for both sides.
const PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// The longest: below the idle timeouts of common load balancers' longest settings.
const PROGRESS_INTERVAL_MAX: Duration = Duration::from_secs(300);
/// The interval that a client gets which does not ask.
const PROGRESS_INTERVAL_DEFAULT: Duration = Duration::from_secs(5);
/// A client's name goes into every log line about it.
const CLIENT_NAME_BYTES_MAX: usize = 128;

/// Checks a request, and narrows it to what its caller may have.
///
/// # Errors
/// The [`Failure`] to answer with; all faults of a filter at once.
pub(super) fn plan(request: SubscribeRequest, grant: &Grant) -> Result<Plan, Failure> {
    let spec = request.filter.unwrap_or_default();
    let spec = filter::Spec {
        types: spec.types,
        exclude_types: spec.exclude_types,
        app_ids: spec.app_ids,
        user_ids: spec.user_ids,
    };
    // The faults of what was asked for first: they are named by their place in it.
    Filter::compile(&spec).map_err(Failure::Filter)?;
    let spec = grant.narrow(spec).map_err(Failure::Forbidden)?;
    let filter = Filter::compile(&spec).map_err(Failure::Filter)?;
    let (stop, events_max) = stop(request.stop.as_ref())?;
    Ok(Plan {
        filter,
        start: start(request.start.as_ref())?,
        stop,
        events_max,
        on_expired: on_expired(request.on_expired)?,
        on_damaged: on_damaged(request.on_damaged)?,
        format: format(request.payload_format)?,
        progress_interval: progress_interval(request.progress_interval.as_ref())?,
        client_name: client_name(request.client_name)?,
    })
}

fn start(start: Option<&StartPosition>) -> Result<StartAt, Failure> {
    Ok(match start.and_then(|start| start.position.as_ref()) {
        None | Some(Start::Latest(_)) => StartAt::Latest,
        Some(Start::Earliest(_)) => StartAt::Earliest,
        Some(Start::AfterCursor(text)) => StartAt::After(cursor("start.after_cursor", text)?),
        Some(Start::AtTime(at)) => StartAt::Time(time("start.at_time", at)?),
    })
}

fn stop(stop: Option<&StopPosition>) -> Result<(StopAt, Option<u64>), Failure> {
    let Some(stop) = stop else {
        return Ok((StopAt::Never, None));
    };
    let at = match stop.position.as_ref() {
        None => StopAt::Never,
        Some(Stop::Head(_)) => StopAt::Head,
        Some(Stop::AtCursor(text)) => StopAt::Cursor(cursor("stop.at_cursor", text)?),
        Some(Stop::AtTime(at)) => StopAt::Time(time("stop.at_time", at)?),
    };
    Ok((at, (stop.max_events > 0).then_some(stop.max_events)))
}

fn cursor(field: &'static str, text: &str) -> Result<Cursor, Failure> {
    text.parse()
        .map_err(|error| Failure::CursorMalformed { field, error })
}

fn time(field: &'static str, at: &prost_types::Timestamp) -> Result<UnixMicros, Failure> {
    // The range that the definition of google.protobuf.Timestamp allows.
    let years_1_to_9999 = -62_135_596_800..=253_402_300_799;
    if !years_1_to_9999.contains(&at.seconds) || !(0..1_000_000_000).contains(&at.nanos) {
        let description = "not a timestamp: seconds must be within the years 1 to 9999, nanos \
                           within 0 to 999999999"
            .into();
        return Err(Failure::Request { field, description });
    }
    // Rounded up: an event received at a later microsecond is never before the time asked for.
    let micros = at.nanos.unsigned_abs().div_ceil(1_000);
    Ok(UnixMicros(at.seconds * 1_000_000 + i64::from(micros)))
}

fn on_expired(value: i32) -> Result<OnExpired, Failure> {
    match ExpiredCursorPolicy::try_from(value) {
        Ok(ExpiredCursorPolicy::Unspecified | ExpiredCursorPolicy::Fail) => Ok(OnExpired::Fail),
        Ok(ExpiredCursorPolicy::Earliest) => Ok(OnExpired::Earliest),
        Ok(ExpiredCursorPolicy::Latest) => Ok(OnExpired::Latest),
        Err(_) => Err(unknown_value("on_expired", value)),
    }
}

fn on_damaged(value: i32) -> Result<OnDamaged, Failure> {
    match DamagedPolicy::try_from(value) {
        Ok(DamagedPolicy::Unspecified | DamagedPolicy::Fail) => Ok(OnDamaged::Fail),
        Ok(DamagedPolicy::Skip) => Ok(OnDamaged::Skip),
        Err(_) => Err(unknown_value("on_damaged", value)),
    }
}

fn format(value: i32) -> Result<Format, Failure> {
    match PayloadFormat::try_from(value) {
        Ok(PayloadFormat::Unspecified | PayloadFormat::Typed) => Ok(Format::Typed),
        Ok(PayloadFormat::Raw) => Ok(Format::Raw),
        Ok(PayloadFormat::Both) => Ok(Format::Both),
        Err(_) => Err(unknown_value("payload_format", value)),
    }
}

fn unknown_value(field: &'static str, value: i32) -> Failure {
    Failure::Request {
        field,
        description: format!("this release does not know the value {value}"),
    }
}

fn progress_interval(interval: Option<&prost_types::Duration>) -> Result<Duration, Failure> {
    let Some(interval) = interval else {
        return Ok(PROGRESS_INTERVAL_DEFAULT);
    };
    Duration::try_from(*interval)
        .ok()
        .filter(|interval| (PROGRESS_INTERVAL_MIN..=PROGRESS_INTERVAL_MAX).contains(interval))
        .ok_or_else(|| Failure::Request {
            field: "progress_interval",
            description: format!(
                "must be between {} ms and {} s",
                PROGRESS_INTERVAL_MIN.as_millis(),
                PROGRESS_INTERVAL_MAX.as_secs()
            ),
        })
}

fn client_name(name: String) -> Result<String, Failure> {
    if name.len() <= CLIENT_NAME_BYTES_MAX && !name.contains(plain::steers) {
        return Ok(name);
    }
    let description = format!("must be at most {CLIENT_NAME_BYTES_MAX} bytes of printable text");
    Err(Failure::Request {
        field: "client_name",
        description,
    })
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::{
        credentials::{Credentials, Presented},
        proto,
    };

    fn plan(request: SubscribeRequest) -> Result<Plan, Failure> {
        let credentials = Credentials::anonymous();
        let grant = credentials.authenticate(Presented::default());
        let grant = grant.now_or_never().unwrap().unwrap();
        super::plan(request, &grant)
    }

    fn failure(request: SubscribeRequest) -> &'static str {
        plan(request).unwrap_err().reason()
    }

    #[test]
    fn an_empty_request_means_everything_from_now_on() {
        let plan = plan(SubscribeRequest::default()).unwrap();
        assert_eq!(plan.start, StartAt::Latest);
        assert_eq!(plan.stop, StopAt::Never);
        assert_eq!(plan.events_max, None);
        assert_eq!(plan.on_expired, OnExpired::Fail);
        assert_eq!(plan.on_damaged, OnDamaged::Fail);
        assert_eq!(plan.format, Format::Typed);
        assert_eq!(plan.progress_interval, PROGRESS_INTERVAL_DEFAULT);
    }

    #[test]
    fn every_field_is_held_to_its_bounds() {
        let after = |text: &str| StartPosition {
            position: Some(Start::AfterCursor(text.into())),
        };
        let bad = SubscribeRequest {
            start: Some(after("no cursor")),
            ..Default::default()
        };
        assert_eq!(failure(bad), "CURSOR_MALFORMED");
        let filter = proto::Filter {
            types: vec!["a.**.b".into()],
            ..Default::default()
        };
        let bad = SubscribeRequest {
            filter: Some(filter),
            ..Default::default()
        };
        assert_eq!(failure(bad), "FILTER_INVALID");
        for (seconds, nanos) in [(i64::MAX, 0), (0, -1), (0, 1_000_000_000)] {
            let at = prost_types::Timestamp { seconds, nanos };
            let start = StartPosition {
                position: Some(Start::AtTime(at)),
            };
            let bad = SubscribeRequest {
                start: Some(start),
                ..Default::default()
            };
            assert_eq!(failure(bad), "REQUEST_INVALID");
        }
        for (seconds, nanos) in [(0, 99_999_999), (301, 0), (-1, 0)] {
            let interval = prost_types::Duration { seconds, nanos };
            let bad = SubscribeRequest {
                progress_interval: Some(interval),
                ..Default::default()
            };
            assert_eq!(failure(bad), "REQUEST_INVALID");
        }
        for name in [
            "x".repeat(129),
            "a\u{1b}[31m".into(),
            "a\u{9b}31m".into(),
            "a\u{202e}b".into(),
        ] {
            let bad = SubscribeRequest {
                client_name: name,
                ..Default::default()
            };
            assert_eq!(failure(bad), "REQUEST_INVALID");
        }
        let bad = SubscribeRequest {
            payload_format: 77,
            ..Default::default()
        };
        assert_eq!(failure(bad), "REQUEST_INVALID");
        let bad = SubscribeRequest {
            on_expired: 77,
            ..Default::default()
        };
        assert_eq!(failure(bad), "REQUEST_INVALID");
        let bad = SubscribeRequest {
            on_damaged: 77,
            ..Default::default()
        };
        assert_eq!(failure(bad), "REQUEST_INVALID");
    }

    #[test]
    fn a_time_is_rounded_up_to_the_clock_of_the_log() {
        let at = |seconds, nanos| time("t", &prost_types::Timestamp { seconds, nanos });
        assert_eq!(at(1, 1), Ok(UnixMicros(1_000_001)));
        assert_eq!(at(1, 2_000), Ok(UnixMicros(1_000_002)));
        assert_eq!(at(-1, 0), Ok(UnixMicros(-1_000_000)));
    }
}
