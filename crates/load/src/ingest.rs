//! Measures the way in: how fast signed batches are acknowledged as durable.

use hdrhistogram::Histogram;

use super::{
    Context, Error, Store,
    report::{Figure, Line, Measured, Unit, Value},
    sender::Senders,
    server::Server,
    signer::Request,
    usage::Clock,
};

/// One part in so many of the batches is sent before the measurement begins.
const WARM_UP_PART: usize = 10;

/// What is sent, and where to.
#[derive(Clone, Debug)]
pub struct Options {
    /// The stores to measure.
    pub stores: Vec<Store>,
    /// Events of a batch; each number is measured.
    pub batch_events: Vec<u64>,
    /// Connections that send at the same time, each one batch at a time.
    pub connections: usize,
    /// How many batches a run sends. All of them are signed before and held in memory.
    pub batches: usize,
    /// An upper bound on their events, which ends a run with large batches earlier.
    pub events_max: u64,
}

impl Options {
    fn batches(&self, batch_events: u64) -> usize {
        let most = usize::try_from(self.events_max / batch_events.max(1)).unwrap_or(usize::MAX);
        self.batches.min(most).max(1)
    }
}

pub(super) fn run(context: &Context<'_>, options: &Options) -> Result<(), Error> {
    for &batch_events in &options.batch_events {
        let count = options.batches(batch_events);
        let warm_up_count = count.div_ceil(WARM_UP_PART);
        // Each run has a new log, so the same batches are new to each.
        let requests = context.prepare(0, warm_up_count + count, batch_events)?;
        let (warm_up, requests) = requests.split_at(warm_up_count);
        for &store in &options.stores {
            let mut runs = Vec::new();
            for run in 1..=context.settings.runs {
                context.progress(format_args!(
                    "ingest, {store}: {count} batches of {batch_events}, run {run} of {}",
                    context.settings.runs
                ))?;
                let server = context.server(store)?;
                let mut senders = Senders::open(context, server.webhook, options.connections)?;
                senders.send(warm_up)?;
                runs.push(measure(
                    context,
                    &server,
                    &mut senders,
                    requests,
                    batch_events,
                )?);
            }
            let settings = vec![
                ("store", Value::text(store.name())),
                ("batch_events", Value::Count(batch_events)),
                ("connections", Value::count(options.connections)),
            ];
            let line = Line::new("ingest", settings, context.settings.runs);
            context.report(&line.sum_up(&runs))?;
        }
    }
    Ok(())
}

fn measure(
    context: &Context<'_>,
    server: &Server,
    senders: &mut Senders,
    requests: &[Request],
    batch_events: u64,
) -> Result<Measured, Error> {
    let clock = Clock::start(&context.split, server.process());
    let times = senders.send(requests)?;
    let usage = clock.stop();
    let batches = requests.len() as f64;
    let events = batches * batch_events as f64;
    let mut measured = vec![
        (EVENTS_PER_SECOND, Some(events / usage.seconds())),
        (REQUESTS_PER_SECOND, Some(batches / usage.seconds())),
    ];
    measured.extend(acknowledged(&times));
    let micros = usage.server_cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / events);
    measured.push((SERVER_CPU_PER_EVENT, micros));
    measured.extend(usage.measured(&context.split));
    Ok(measured)
}

/// The latencies of acknowledgements.
pub(super) fn acknowledged(times: &Histogram<u64>) -> Measured {
    let at = |quantile| Some(times.value_at_quantile(quantile) as f64);
    vec![
        (ACK_P50, at(0.5)),
        (ACK_P99, at(0.99)),
        (ACK_P999, at(0.999)),
    ]
}

const EVENTS_PER_SECOND: Figure = Figure {
    name: "events_per_second",
    title: "events/s",
    unit: Unit::Number,
};
const REQUESTS_PER_SECOND: Figure = Figure {
    name: "requests_per_second",
    title: "requests/s",
    unit: Unit::Number,
};
const ACK_P50: Figure = Figure {
    name: "ack_p50_us",
    title: "ack p50",
    unit: Unit::Micros,
};
const ACK_P99: Figure = Figure {
    name: "ack_p99_us",
    title: "ack p99",
    unit: Unit::Micros,
};
const ACK_P999: Figure = Figure {
    name: "ack_p999_us",
    title: "ack p99.9",
    unit: Unit::Micros,
};
const SERVER_CPU_PER_EVENT: Figure = Figure {
    name: "server_cpu_us_per_event",
    title: "server CPU per event",
    unit: Unit::Micros,
};
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_has_at_least_one_batch_and_no_more_events_than_allowed() {
        let options = Options {
            stores: Vec::new(),
            batch_events: Vec::new(),
            connections: 1,
            batches: 1_000,
            events_max: 50_000,
        };
        assert_eq!(options.batches(1), 1_000);
        assert_eq!(options.batches(100), 500);
        assert_eq!(options.batches(100_000), 1);
    }
}
