//! Measures the way out: how many events reach how many subscribers, and what that costs.
//!
//! Events come in as signed batches, as they do in life, as fast as the subscribers take them: no
//! more than a bound of them is on the way, so that everybody stays live and nobody reads the log.
//! What coming in costs is measured without subscribers and taken off where a figure says so.

use std::time::{Duration, Instant};

use super::{
    Context, Error, Store,
    events::Shape,
    report::{Figure, Line, Measured, Unit, Value},
    sender::Senders,
    signer::{Request, Turn},
    subscriber::{Begin, Crowd, Wish},
    usage::{Clock, Usage},
};

/// Large batches: the way in should cost little here.
const BATCH_EVENTS: u64 = 100;

/// Connections that send: enough to share a group commit.
const SENDERS: usize = 8;

/// Sent before the measurement begins, so that code and memory are where they will be.
const WARM_UP_BATCHES: usize = 20;

/// How many deliveries may be on the way, over all subscribers: what they take in about half a second.
const DELIVERIES_ON_THE_WAY_MAX: u64 = 1_000_000;

/// How many events may be on the way: a tenth of the server's window in memory.
const EVENTS_ON_THE_WAY_MAX: u64 = 12_800;

/// The bounds of a number of subscribers: the largest that idle ones are measured with.
pub const SUBSCRIBERS: std::ops::RangeInclusive<usize> = 1..=20_000;

/// How many subscribers want what, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// The stores to measure.
    pub stores: Vec<Store>,
    /// How many subscribers; each number is measured.
    pub subscribers: Vec<usize>,
    /// What they ask for; each is measured.
    pub shapes: Vec<Shape>,
    /// How long events are sent.
    pub duration: Duration,
    /// How many events can be sent at most, which ends a run earlier. They are signed before and
    /// held in memory.
    pub events_max: u64,
}

/// What one run is about.
#[derive(Clone, Copy)]
struct Case {
    store: Store,
    subscribers: usize,
    shape: Shape,
}

impl Case {
    /// How many events may be on the way.
    fn events_on_the_way(&self) -> u64 {
        let subscribers = self.subscribers.max(1) as u64;
        (DELIVERIES_ON_THE_WAY_MAX / subscribers).clamp(2 * BATCH_EVENTS, EVENTS_ON_THE_WAY_MAX)
    }
}

pub(super) fn run(context: &Context<'_>, options: &Options) -> Result<(), Error> {
    let batches = usize::try_from(options.events_max.div_ceil(BATCH_EVENTS)).unwrap_or(usize::MAX);
    // Each run has a new log, so the same batches are new to each.
    let requests = context.prepare(0, WARM_UP_BATCHES + batches, BATCH_EVENTS)?;
    for &store in &options.stores {
        let nobody = Case {
            store,
            subscribers: 0,
            shape: Shape::All,
        };
        let mut cases = vec![nobody];
        for &shape in &options.shapes {
            cases.extend(options.subscribers.iter().map(|&count| Case {
                subscribers: count,
                shape,
                ..nobody
            }));
        }
        let mut runs: Vec<Vec<Measured>> = cases.iter().map(|_| Vec::new()).collect();
        // All cases in turn, so that a machine that gets slower does so for all of them.
        for run in 1..=context.settings.runs {
            let mut ingest_cpu = None;
            for (case, measured) in cases.iter().zip(&mut runs) {
                let Case {
                    subscribers, shape, ..
                } = case;
                context.progress(format_args!(
                    "fanout, {store}: {subscribers} subscribers to {}, run {run} of {}",
                    shape.name(),
                    context.settings.runs
                ))?;
                let outcome = measure(context, *case, options, &requests)?;
                if *subscribers == 0 {
                    ingest_cpu = outcome.server_cpu_per_event();
                }
                measured.push(outcome.measured(context, ingest_cpu));
            }
        }
        for (case, measured) in cases.iter().zip(&runs) {
            let settings = vec![
                ("store", Value::text(store.name())),
                ("subscribers", Value::count(case.subscribers)),
                ("filter", Value::text(case.shape.name())),
            ];
            let line = Line::new("fanout", settings, context.settings.runs);
            context.report(&line.sum_up(measured))?;
        }
    }
    Ok(())
}

/// What happened in one run.
struct Outcome {
    usage: Usage,
    events: u64,
    deliveries: u64,
    responses: u64,
    bytes: u64,
    subscriber_bytes: Option<f64>,
    resident_bytes_peak: Option<u64>,
}

fn measure(
    context: &Context<'_>,
    case: Case,
    options: &Options,
    requests: &[Request],
) -> Result<Outcome, Error> {
    let server = context.server(case.store)?;
    let mut senders = Senders::open(context, server.webhook, SENDERS)?;
    let (warm_up, requests) = requests.split_at(WARM_UP_BATCHES.min(requests.len()));
    senders.send(warm_up)?;

    let before = server.process().resident_bytes();
    let wish = Wish {
        shape: case.shape,
        begin: Begin::Latest,
        frame_bytes: context.settings.frame_bytes,
    };
    let crowd = Crowd::connect(context, server.grpc, case.subscribers, wish, |_| None)?;
    crowd.caught_up()?;
    let subscriber_bytes =
        before
            .zip(server.process().resident_bytes())
            .and_then(|(before, after)| {
                let grown = after.saturating_sub(before) as f64;
                (crowd.len() > 0).then(|| grown / crowd.len() as f64)
            });

    let (responses, bytes) = sums(&crowd);
    let clock = Clock::start(&context.split, server.process());
    let sent_batches = feed(
        context,
        case,
        &mut senders,
        requests,
        options.duration,
        &crowd,
    )?;
    let first = WARM_UP_BATCHES as u64 * BATCH_EVENTS;
    let events = sent_batches * BATCH_EVENTS;
    let each = case.shape.matching(&(first..first + events));
    let deliveries = each * crowd.len() as u64;
    crowd.delivered(deliveries)?;
    let usage = clock.stop();
    crowd.check(case.shape, each)?;
    let (responses_after, bytes_after) = sums(&crowd);
    Ok(Outcome {
        usage,
        events,
        deliveries,
        responses: responses_after - responses,
        bytes: bytes_after - bytes,
        subscriber_bytes,
        resident_bytes_peak: server.process().resident_bytes_peak(),
    })
}

/// How many responses and bytes all of them have got.
fn sums(crowd: &Crowd) -> (u64, u64) {
    crowd.counts().fold((0, 0), |(responses, bytes), counts| {
        (responses + counts.responses, bytes + counts.bytes)
    })
}

/// Sends batches until the time is over or there are no more, and says how many. A batch waits
/// while too many events are on the way.
fn feed(
    context: &Context<'_>,
    case: Case,
    senders: &mut Senders,
    requests: &[Request],
    duration: Duration,
    crowd: &Crowd,
) -> Result<u64, Error> {
    let turn = Turn::default();
    let end = Instant::now() + duration;
    let first = WARM_UP_BATCHES as u64 * BATCH_EVENTS;
    let sent = senders.run(|connection, times| {
        // A turn that was taken is always sent: so what was sent is the first so many.
        while Instant::now() < end {
            let index = turn.next();
            let Some(request) = requests.get(index) else {
                break;
            };
            context.stop.check()?;
            let before = index as u64 * BATCH_EVENTS;
            let arrived = before.saturating_sub(case.events_on_the_way());
            let each = case.shape.matching(&(first..first + arrived));
            crowd.delivered(each * crowd.len() as u64)?;
            connection.post(request)?;
            times.saturating_record(1);
        }
        Ok(())
    })?;
    Ok(sent.len())
}

impl Outcome {
    fn server_cpu_per_event(&self) -> Option<f64> {
        self.usage
            .server_cpu
            .map(|cpu| cpu.as_secs_f64() / self.events as f64)
    }

    /// `ingest_cpu` is what an event costs without subscribers, in seconds.
    fn measured(&self, context: &Context<'_>, ingest_cpu: Option<f64>) -> Measured {
        let (events, deliveries) = (self.events as f64, self.deliveries as f64);
        let seconds = self.usage.seconds();
        let cpu = self.usage.server_cpu.map(|cpu| cpu.as_secs_f64());
        let way_out = cpu
            .zip(ingest_cpu)
            .map(|(all, each)| (all - each * events).max(0.0));
        let per_delivery = |sum: f64| (deliveries > 0.0).then(|| sum / deliveries);
        let mut measured = vec![
            (DELIVERIES_PER_SECOND, Some(deliveries / seconds)),
            (EVENTS_PER_SECOND, Some(events / seconds)),
            (
                CPU_PER_MILLION_DELIVERIES,
                cpu.and_then(per_delivery).map(|cpu| cpu * 1e6),
            ),
            (
                OUT_PER_MILLION_DELIVERIES,
                way_out.and_then(per_delivery).map(|cpu| cpu * 1e6),
            ),
            (CPU_PER_MILLION_EVENTS, cpu.map(|cpu| cpu / events * 1e6)),
            (
                OUT_PER_MILLION_EVENTS,
                way_out.map(|cpu| cpu / events * 1e6),
            ),
            (BYTES_PER_DELIVERY, per_delivery(self.bytes as f64)),
            (
                EVENTS_PER_RESPONSE,
                (self.responses > 0).then(|| deliveries / self.responses as f64),
            ),
            (BYTES_PER_SUBSCRIBER, self.subscriber_bytes),
            (
                RESIDENT_BYTES_PEAK,
                self.resident_bytes_peak.map(|bytes| bytes as f64),
            ),
        ];
        measured.extend(self.usage.measured(&context.split));
        measured
    }
}

const DELIVERIES_PER_SECOND: Figure = Figure {
    name: "deliveries_per_second",
    title: "deliveries/s",
    unit: Unit::Number,
};
const EVENTS_PER_SECOND: Figure = Figure {
    name: "events_per_second",
    title: "events/s in",
    unit: Unit::Number,
};
const CPU_PER_MILLION_DELIVERIES: Figure = Figure {
    name: "server_cpu_s_per_million_deliveries",
    title: "server CPU per M deliveries",
    unit: Unit::Seconds,
};
const OUT_PER_MILLION_DELIVERIES: Figure = Figure {
    name: "fanout_cpu_s_per_million_deliveries",
    title: "without ingest",
    unit: Unit::Seconds,
};
const CPU_PER_MILLION_EVENTS: Figure = Figure {
    name: "server_cpu_s_per_million_events",
    title: "",
    unit: Unit::Seconds,
};
const OUT_PER_MILLION_EVENTS: Figure = Figure {
    name: "fanout_cpu_s_per_million_events",
    title: "per M events, w/o ingest",
    unit: Unit::Seconds,
};
const BYTES_PER_DELIVERY: Figure = Figure {
    name: "bytes_per_delivery",
    title: "",
    unit: Unit::Bytes,
};
const EVENTS_PER_RESPONSE: Figure = Figure {
    name: "events_per_response",
    title: "",
    unit: Unit::Number,
};
const BYTES_PER_SUBSCRIBER: Figure = Figure {
    name: "idle_bytes_per_subscriber",
    title: "memory per idle subscriber",
    unit: Unit::Bytes,
};
const RESIDENT_BYTES_PEAK: Figure = Figure {
    name: "server_resident_bytes_peak",
    title: "",
    unit: Unit::Bytes,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_subscribers_the_fewer_events_are_on_the_way() {
        let on_the_way = |subscribers| {
            let case = Case {
                store: Store::Memory,
                subscribers,
                shape: Shape::All,
            };
            case.events_on_the_way()
        };
        assert_eq!(on_the_way(0), EVENTS_ON_THE_WAY_MAX);
        assert_eq!(on_the_way(1), EVENTS_ON_THE_WAY_MAX);
        assert_eq!(on_the_way(1_000), 1_000);
        assert_eq!(on_the_way(20_000), 2 * BATCH_EVENTS);
    }
}
