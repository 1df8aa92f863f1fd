//! How many events happen and when: a steady rate, bursts on top of it, or as fast as it goes.
//! Knows nothing of what becomes of them.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{BATCH_EVENTS_MAX, Error, EventType, Simulator, event_type, options::Invalid};

/// Events that happen all at once, again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Burst {
    /// How far apart bursts are.
    pub every: Duration,
    /// How many events each has.
    pub events: u64,
}

/// A stretch of traffic over some apps, which take turns batch by batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Traffic {
    /// Events a second over all apps, on the clock on the wall; none for as fast as it goes.
    pub events_per_second: Option<f64>,
    /// Events in a batch; for a source that sends single events, how many it sends at once.
    pub batch_events: usize,
    /// Where to stop; none for never.
    pub events_max: Option<u64>,
    /// When to stop; none for never.
    pub duration: Option<Duration>,
    /// Which types happen; none given for all. Each app has those of its kind.
    pub types: Vec<EventType>,
    /// Which apps they happen in; none given for all.
    pub apps: Vec<String>,
    /// What comes on top of the rate.
    pub burst: Option<Burst>,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            events_per_second: Some(10.0),
            batch_events: 5,
            events_max: None,
            duration: None,
            types: Vec::new(),
            apps: Vec::new(),
            burst: None,
        }
    }
}

impl Traffic {
    /// # Errors
    /// [`Invalid`] names the first setting that makes no sense.
    pub fn check(&self) -> Result<(), Invalid> {
        let invalid = |text: String| Err(Invalid(text));
        if self
            .events_per_second
            .is_some_and(|rate| !(rate.is_finite() && rate > 0.0))
        {
            return invalid("the rate must be above 0 events a second".to_owned());
        }
        if self.batch_events == 0 || self.batch_events > BATCH_EVENTS_MAX {
            return invalid(format!("a batch has 1 to {BATCH_EVENTS_MAX} events"));
        }
        if self.burst.is_some_and(|burst| burst.every.is_zero()) {
            return invalid("bursts need some time between them".to_owned());
        }
        Ok(())
    }

    /// Lets the events happen, and returns how many did. Dropping it in the middle loses no batch
    /// that was already handed to the sender.
    ///
    /// # Errors
    /// [`Error::Options`] from [`Traffic::check`], and those of [`Simulator::emit`].
    pub async fn run(&self, simulator: &Simulator) -> Result<u64, Error> {
        self.check()?;
        let apps = self.chosen_apps(simulator)?;
        let events_max = self.events_max.unwrap_or(u64::MAX);
        let mut plan = Plan::new(self, Instant::now());
        let mut happened = 0;
        for (app, types) in apps.iter().cycle() {
            let room = usize::try_from(events_max - happened).unwrap_or(usize::MAX);
            let count = self.batch_events.min(room);
            if count == 0 {
                break;
            }
            let at = plan.next(count);
            if self
                .duration
                .is_some_and(|duration| at >= plan.started + duration)
            {
                break;
            }
            // A time that has passed is no pause at all: catching up, or no rate.
            sleep_until(at).await;
            simulator.emit(app, count, types).await?;
            happened += count as u64;
        }
        Ok(happened)
    }

    /// The apps in which events happen, each with the chosen types of its kind.
    fn chosen_apps<'a>(
        &'a self,
        simulator: &'a Simulator,
    ) -> Result<Vec<(&'a str, Vec<EventType>)>, Error> {
        let all: Vec<&str> = if self.apps.is_empty() {
            simulator.app_ids().collect()
        } else {
            self.apps.iter().map(String::as_str).collect()
        };
        let mut chosen = Vec::new();
        for app in all {
            let kind = simulator.kind(app)?;
            let types = self.types.iter().copied();
            let types: Vec<_> = types.filter(|name| name.source_kind() == kind).collect();
            if self.types.is_empty() || !types.is_empty() {
                chosen.push((app, types));
            }
        }
        if chosen.is_empty() {
            return Err(Error::Options(Invalid(format!(
                "no source here sends {}",
                event_type::list(&self.types)
            ))));
        }
        Ok(chosen)
    }
}

/// When the next batch is due. Worked out from the start, so that pauses do not add up to a drift.
struct Plan {
    started: Instant,
    seconds_per_event: f64,
    burst: Option<Burst>,
    steady_events: u64,
    bursts: u32,
    left_in_burst: u64,
}

impl Plan {
    fn new(traffic: &Traffic, started: Instant) -> Self {
        Self {
            started,
            seconds_per_event: traffic.events_per_second.map_or(0.0, f64::recip),
            burst: traffic.burst,
            steady_events: 0,
            bursts: 0,
            left_in_burst: 0,
        }
    }

    fn next(&mut self, count: usize) -> Instant {
        let count = count as u64;
        let burst_at = self.burst.map(|burst| {
            let index = self.bursts + u32::from(self.left_in_burst == 0);
            self.started + burst.every.saturating_mul(index)
        });
        #[expect(
            clippy::cast_precision_loss,
            reason = "2^53 events take longer than a run"
        )]
        let seconds = self.steady_events as f64 * self.seconds_per_event;
        // Without a rate everything is due now, measured from now and not from the start.
        let steady_at = if self.seconds_per_event > 0.0 {
            let offset = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
            self.started.checked_add(offset)
        } else {
            Some(Instant::now())
        };
        let steady_at = steady_at.unwrap_or_else(|| self.started + Duration::from_secs(1 << 32));
        match (burst_at, self.burst) {
            (Some(at), Some(burst)) if at <= steady_at => {
                if self.left_in_burst == 0 {
                    self.bursts += 1;
                    self.left_in_burst = burst.events;
                }
                self.left_in_burst = self.left_in_burst.saturating_sub(count);
                at
            }
            _ => {
                self.steady_events += count;
                steady_at
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(traffic: &Traffic, batches: usize) -> Vec<u128> {
        let started = Instant::now();
        let mut plan = Plan::new(traffic, started);
        let mut at = || {
            plan.next(traffic.batch_events)
                .duration_since(started)
                .as_millis()
        };
        (0..batches).map(|_| at()).collect()
    }

    #[test]
    fn a_rate_spaces_the_batches_evenly_from_the_start() {
        let traffic = Traffic {
            events_per_second: Some(100.0),
            batch_events: 10,
            ..Traffic::default()
        };
        assert_eq!(due(&traffic, 4), [0, 100, 200, 300]);
    }

    #[test]
    fn bursts_come_on_top_of_the_rate() {
        let traffic = Traffic {
            events_per_second: Some(10.0),
            batch_events: 10,
            burst: Some(Burst {
                every: Duration::from_millis(1_500),
                events: 30,
            }),
            ..Traffic::default()
        };
        let expected = [
            0, 1000, 1500, 1500, 1500, 2000, 3000, 3000, 3000, 3000, 4000,
        ];
        assert_eq!(due(&traffic, 11), expected);
    }

    #[test]
    fn senseless_traffic_is_refused_with_a_remedy() {
        let refused = |traffic: Traffic| traffic.check().is_err();
        let base = Traffic::default;
        assert!(!refused(base()));
        assert!(refused(Traffic {
            events_per_second: Some(0.0),
            ..base()
        }));
        assert!(refused(Traffic {
            events_per_second: Some(f64::INFINITY),
            ..base()
        }));
        assert!(refused(Traffic {
            batch_events: 0,
            ..base()
        }));
        assert!(refused(Traffic {
            batch_events: BATCH_EVENTS_MAX + 1,
            ..base()
        }));
        let burst = Some(Burst {
            every: Duration::ZERO,
            events: 1,
        });
        assert!(refused(Traffic { burst, ..base() }));
    }
}
