//! Measures the whole way of an event: from the moment it was to be sent until a subscriber has it.
//!
//! Events are sent by a schedule that does not wait for anybody, and every time counts from the
//! schedule. A stall of the server, or of the load, so shows in all events that it delays, and not
//! in one (the "coordinated omission" of closed loops).

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

use super::{
    Context, Error, Shape, Store, events,
    ingest::acknowledged,
    report::{Figure, Line, Measured, Unit, Value, histogram},
    responses::event_ids,
    sender::{Senders, micros},
    server::Server,
    signer::{Request, Turn},
    subscriber::{Begin, Crowd, Look, Wish},
    usage::{Clock, Usage},
};

/// How long events are sent before they count.
const WARM_UP: Duration = Duration::from_secs(1);

/// Threads that send. Each sends one event at a time, so this many may be unacknowledged before the
/// schedule is missed, which the figures then show. No more than a second's events, so that none
/// waits for long.
const SENDERS: u64 = 32;

/// The bounds of a rate in events a second, one to a request.
pub const RATE: std::ops::RangeInclusive<u64> = 1..=20_000;

/// How fast, for how many, for how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// The stores to measure.
    pub stores: Vec<Store>,
    /// Events a second, each in a batch of its own.
    pub rate: u64,
    /// How many subscribers get all of them.
    pub subscribers: usize,
    /// How long a run counts.
    pub duration: Duration,
}

pub(super) fn run(context: &Context<'_>, options: &Options) -> Result<(), Error> {
    let schedule = Schedule::new(options.rate, WARM_UP, options.duration, 0);
    let requests = context.prepare(0, schedule.count(), 1)?;
    let mut runs: Vec<Vec<Measured>> = options.stores.iter().map(|_| Vec::new()).collect();
    for run in 1..=context.settings.runs {
        for (&store, measured) in options.stores.iter().zip(&mut runs) {
            context.progress(format_args!(
                "latency, {store}: {} events/s to {} subscribers, run {run} of {}",
                options.rate, options.subscribers, context.settings.runs
            ))?;
            let server = context.server(store)?;
            let live = Live::start(context, &server, options.subscribers, schedule)?;
            measured.push(live.run(context, &server, &requests)?.measured(context));
        }
    }
    for (store, measured) in options.stores.iter().zip(&runs) {
        let settings = vec![
            ("store", Value::text(store.name())),
            ("rate", Value::Count(options.rate)),
            ("subscribers", Value::count(options.subscribers)),
        ];
        let line = Line::new("latency", settings, context.settings.runs);
        context.report(&line.sum_up(measured))?;
    }
    Ok(())
}

/// When each event is to be sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    interval: Duration,
    warm_up_count: u64,
    count: u64,
    /// The number of the first event.
    first: u64,
}

impl Schedule {
    pub(super) fn new(rate: u64, warm_up: Duration, duration: Duration, first: u64) -> Self {
        let events = |duration: Duration| {
            let count = u128::from(rate) * duration.as_millis() / 1_000;
            u64::try_from(count).unwrap_or(u64::MAX)
        };
        let warm_up_count = events(warm_up);
        Self {
            interval: Duration::from_secs(1) / u32::try_from(rate.max(1)).unwrap_or(u32::MAX),
            warm_up_count,
            count: warm_up_count + events(duration).max(1),
            first,
        }
    }

    /// How many events it has, those of the warm-up included.
    pub(super) fn count(&self) -> usize {
        usize::try_from(self.count).unwrap_or(usize::MAX)
    }

    fn senders(&self) -> usize {
        let per_second = Duration::from_secs(1).as_nanos() / self.interval.as_nanos().max(1);
        usize::try_from(per_second.clamp(1, u128::from(SENDERS))).unwrap_or(1)
    }

    /// The number of the first event.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    fn at(&self, start: Instant, index: u64) -> Instant {
        start + self.interval.mul_f64(index as f64)
    }
}

/// Live subscribers that note how late each event comes.
pub(super) struct Live {
    schedule: Schedule,
    crowd: Crowd,
    start: Arc<OnceLock<Instant>>,
    received: Vec<Arc<Mutex<Histogram<u64>>>>,
    senders: Senders,
}

/// What a schedule led to.
pub(super) struct Outcome {
    usage: Usage,
    pub(super) received: Histogram<u64>,
    acknowledged: Histogram<u64>,
    events: u64,
    deliveries: u64,
}

impl Live {
    pub(super) fn start(
        context: &Context<'_>,
        server: &Server,
        subscribers: usize,
        schedule: Schedule,
    ) -> Result<Self, Error> {
        let start = Arc::<OnceLock<Instant>>::default();
        let received: Vec<_> = (0..subscribers)
            .map(|_| Arc::new(Mutex::new(histogram())))
            .collect();
        let wish = Wish {
            shape: Shape::All,
            begin: Begin::Latest,
            frame_bytes: context.settings.frame_bytes,
        };
        let crowd = Crowd::connect(context, server.grpc, subscribers, wish, |index| {
            let (start, times) = (Arc::clone(&start), Arc::clone(received.get(index)?));
            let look: Look = Box::new(move |message, now| {
                let Some(&start) = start.get() else { return };
                let mut times = times.lock().unwrap_or_else(PoisonError::into_inner);
                for number in event_ids(message).filter_map(events::number) {
                    let Some(index) = number.checked_sub(schedule.first) else {
                        continue;
                    };
                    if index >= schedule.warm_up_count {
                        let late = now.saturating_duration_since(schedule.at(start, index));
                        times.saturating_record(micros(late));
                    }
                }
            });
            Some(look)
        })?;
        crowd.caught_up()?;
        let senders = Senders::open(context, server.webhook, schedule.senders())?;
        Ok(Self {
            schedule,
            crowd,
            start,
            received,
            senders,
        })
    }

    /// Sends by the schedule and waits until all has arrived.
    pub(super) fn run(
        mut self,
        context: &Context<'_>,
        server: &Server,
        requests: &[Request],
    ) -> Result<Outcome, Error> {
        let schedule = self.schedule;
        let turn = Turn::default();
        // A moment for the threads to begin.
        let start = Instant::now() + Duration::from_millis(20);
        let _ = self.start.set(start);
        let clock = Clock::start(&context.split, server.process());
        let acknowledged = self.senders.run(|connection, times| {
            precise_sleep();
            loop {
                let index = turn.next();
                let Some(request) = requests.get(index) else {
                    return Ok(());
                };
                context.stop.check()?;
                let due = schedule.at(start, index as u64);
                thread::sleep(due.saturating_duration_since(Instant::now()));
                connection.post(request)?;
                if index as u64 >= schedule.warm_up_count {
                    times.saturating_record(micros(due.elapsed()));
                }
            }
        })?;
        let deliveries = schedule.count * self.crowd.len() as u64;
        self.crowd.delivered(deliveries)?;
        let usage = clock.stop();
        self.crowd.check(Shape::All, schedule.count)?;
        let mut received = histogram();
        for times in &self.received {
            // Both have the same bounds.
            let _ = received.add(&*times.lock().unwrap_or_else(PoisonError::into_inner));
        }
        Ok(Outcome {
            usage,
            received,
            acknowledged,
            events: schedule.count,
            deliveries,
        })
    }
}

impl Outcome {
    fn measured(&self, context: &Context<'_>) -> Measured {
        let at = |quantile| Some(self.received.value_at_quantile(quantile) as f64);
        let mut measured = vec![
            (P50, at(0.5)),
            (P90, at(0.9)),
            (P99, at(0.99)),
            (P999, at(0.999)),
            (MAX, Some(self.received.max() as f64)),
        ];
        measured.extend(acknowledged(&self.acknowledged));
        let cpu = self.usage.server_cpu;
        let micros = |cpu: Duration| cpu.as_secs_f64() * 1e6;
        let per_event = cpu.map(|cpu| micros(cpu) / self.events as f64);
        let per_delivery = cpu.map(|cpu| micros(cpu) / self.deliveries as f64);
        measured.push((SERVER_CPU_PER_EVENT, per_event));
        measured.push((SERVER_CPU_PER_DELIVERY, per_delivery));
        measured.extend(self.usage.measured(&context.split));
        measured
    }
}

/// Lets this thread sleep to the microsecond: by default the kernel may add 50 to save wake-ups.
fn precise_sleep() {
    #[cfg(target_os = "linux")]
    {
        // Where that is refused, sleeps are as they always were.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZero::new(1_000));
    }
}

const P50: Figure = Figure {
    name: "p50_us",
    title: "p50",
    unit: Unit::Micros,
};
const P90: Figure = Figure {
    name: "p90_us",
    title: "",
    unit: Unit::Micros,
};
const P99: Figure = Figure {
    name: "p99_us",
    title: "p99",
    unit: Unit::Micros,
};
const P999: Figure = Figure {
    name: "p999_us",
    title: "p99.9",
    unit: Unit::Micros,
};
const MAX: Figure = Figure {
    name: "max_us",
    title: "",
    unit: Unit::Micros,
};
const SERVER_CPU_PER_EVENT: Figure = Figure {
    name: "server_cpu_us_per_event",
    title: "",
    unit: Unit::Micros,
};
const SERVER_CPU_PER_DELIVERY: Figure = Figure {
    name: "server_cpu_us_per_delivery",
    title: "server CPU per delivery",
    unit: Unit::Micros,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_waits_for_nobody() {
        let seconds = Duration::from_secs;
        let schedule = Schedule::new(2_000, seconds(1), seconds(3), 50);
        assert_eq!((schedule.count(), schedule.warm_up_count), (8_000, 2_000));
        let start = Instant::now();
        assert_eq!(schedule.at(start, 0), start);
        assert_eq!(schedule.at(start, 2_000), start + seconds(1));
        assert_eq!(schedule.senders(), 32);
        assert_eq!(Schedule::new(3, seconds(1), seconds(1), 0).senders(), 3);
        // The shortest run has something to measure.
        assert_eq!(
            Schedule::new(1, Duration::ZERO, Duration::ZERO, 0).count(),
            1
        );
    }
}
