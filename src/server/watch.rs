//! Owns the gauges whose values a scrape reads from the parts.

use std::{sync::Arc, time::Duration};

use crate::{
    bus::Bus,
    credentials::Credentials,
    event::UnixMicros,
    grpc,
    log::{Health, Log},
    metrics::{self, Metrics},
    plain,
    signature::Keyring,
};

/// Registers the gauges whose values a scrape reads from the parts.
pub(super) fn everything(
    metrics: &Metrics,
    log: &Arc<dyn Log>,
    bus: &Arc<Bus>,
    streams: &grpc::Server,
    keyrings: &[Keyring],
    credentials: &Credentials,
) {
    let watched = Arc::downgrade(log);
    metrics.watch_log(move || {
        watched.upgrade().map_or_else(metrics::Log::default, |log| {
            let (range, usage) = (log.range(), log.usage());
            let status = log.status();
            let (damaged, health) = (status.damaged(), status.health());
            metrics::Log {
                is_ready: health == Health::Ready,
                commits_behind: match &health {
                    Health::CatchingUp(catch_up) => catch_up.commits_behind,
                    _ => 0,
                },
                damaged_ranges: damaged.len(),
                damaged_events: damaged
                    .iter()
                    .map(|range| range.last.0 + 1 - range.first.0)
                    .sum(),
                stored_bytes: usage.stored_bytes,
                queued_batches: usage.queued_batches,
                head_sequence: range.head.0,
                earliest_sequence: range.earliest.0,
                clock_jumps: usage.clock_jumps,
                ids: usage.ids,
            }
        })
    });
    let watched = Arc::downgrade(bus);
    metrics.watch_bus(move || {
        watched
            .upgrade()
            .map_or_else(metrics::Bus::default, |bus| metrics::Bus {
                window_bytes: bus.window_bytes() as u64,
                window_blocks: bus.window_blocks(),
            })
    });
    let (watched, window) = (streams.watch(), Arc::downgrade(bus));
    metrics.watch_streams(move || {
        let snapshot = watched();
        let bus = window.upgrade();
        let waiting_since = snapshot
            .slowest
            .and_then(|place| bus?.received_after(place));
        let lag = waiting_since.map_or(0, |since| UnixMicros::now().0.saturating_sub(since.0));
        metrics::Streams {
            subscribers: snapshot.open,
            lag_events_max: snapshot.lag_events_max,
            lag_max: Duration::from_micros(u64::try_from(lag).unwrap_or(0)),
        }
    });
    let watched = keyrings.to_vec();
    metrics.watch_keys(move || watched.iter().map(keys).collect());
    let watched = credentials.clone();
    metrics.watch_credentials(move || {
        let expiries = watched.expiries().into_iter();
        let expiries = expiries.map(|expiry| metrics::CredentialExpiry {
            credential: plain::name(&expiry.name).to_owned(),
            expires_at: expiry.expires_at.as_duration().as_secs_f64(),
        });
        expiries.collect()
    });
}

fn keys(keyring: &Keyring) -> metrics::Keys {
    let status = keyring.status();
    metrics::Keys {
        app_id: keyring.app_id().into(),
        usable: status.keys.len(),
        age: status.fetched_at.and_then(|at| at.elapsed().ok()),
    }
}
