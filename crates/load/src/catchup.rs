//! Measures history: how fast one subscriber reads a whole log, alone and while events keep coming,
//! and what those who are live notice of it.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::{
    Context, Error, Shape, Store,
    cpus::join,
    latency::{Live, Schedule},
    report::{Figure, Line, Measured, Unit, Value},
    sender::Senders,
    server::Server,
    signer::Turn,
    subscriber::{Begin, Crowd, Wish},
    usage::Clock,
};

/// The history comes in batches of this many, on this many connections.
const BATCH_EVENTS: u64 = 100;
const SENDERS: usize = 16;

/// How long live events are sent before they count.
const WARM_UP: Duration = Duration::from_millis(500);

/// How much history, and what goes on meanwhile.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many events the log holds.
    pub events: u64,
    /// Live events a second, each in a batch of its own.
    pub rate: u64,
    /// How many subscribers get those.
    pub subscribers: usize,
    /// How long live events are watched, alone and meanwhile.
    pub duration: Duration,
}

pub(super) fn run(context: &Context<'_>, options: &Options) -> Result<(), Error> {
    // History is larger than what the memory log is meant to hold.
    let server = context.server(Store::Embedded)?;
    context.progress(format_args!("catchup: writing {} events", options.events))?;
    let mut next = fill(context, &server, options.events)?;
    let mut runs = Vec::new();
    for run in 1..=context.settings.runs {
        context.progress(format_args!(
            "catchup: run {run} of {}",
            context.settings.runs
        ))?;
        runs.push(measure(context, &server, options, &mut next)?);
    }
    let settings = vec![
        ("store", Value::text(Store::Embedded.name())),
        ("events", Value::Count(options.events)),
        ("rate", Value::Count(options.rate)),
        ("subscribers", Value::count(options.subscribers)),
    ];
    let line = Line::new("catchup", settings, context.settings.runs);
    context.report(&line.sum_up(&runs))
}

/// Writes the history, and says which number the next event has. Batches are signed as they are
/// sent: nothing is measured here.
fn fill(context: &Context<'_>, server: &Server, events: u64) -> Result<u64, Error> {
    let turn = Turn::default();
    context.split.enter_all();
    let mut senders = Senders::open(context, server.webhook, SENDERS)?;
    let sent = senders.run(|connection, _| {
        loop {
            let first = turn.next() as u64 * BATCH_EVENTS;
            if first >= events {
                return Ok(());
            }
            context.stop.check()?;
            connection.post(&context.request(first..events.min(first + BATCH_EVENTS))?)?;
        }
    });
    context.split.enter_load();
    sent.map(|_| events)
}

fn measure(
    context: &Context<'_>,
    server: &Server,
    options: &Options,
    next: &mut u64,
) -> Result<Measured, Error> {
    let clock = Clock::start(&context.split, server.process());
    let alone = read(context, server)?;
    let usage = clock.stop();

    let live = |next: &mut u64| -> Result<_, Error> {
        let schedule = Schedule::new(options.rate, WARM_UP, options.duration, *next);
        *next += schedule.count() as u64;
        let requests = context.prepare(schedule.first(), schedule.count(), 1)?;
        let live = Live::start(context, server, options.subscribers, schedule)?;
        Ok((live, requests))
    };
    let (quiet, requests) = live(next)?;
    let quiet = quiet.run(context, server, &requests)?.received;

    let (busy, requests) = live(next)?;
    let is_over = AtomicBool::new(false);
    let (busy, meanwhile) = thread::scope(|scope| {
        // One after the other, so that somebody reads history all the time.
        let reading = scope.spawn(|| {
            let mut sum = Read::default();
            while sum.events == 0 || !is_over.load(Ordering::Relaxed) {
                sum.add(read(context, server)?);
            }
            Ok(sum)
        });
        let busy = busy.run(context, server, &requests);
        is_over.store(true, Ordering::Relaxed);
        let meanwhile = join(reading.join());
        busy.and_then(|busy| Ok((busy.received, meanwhile?)))
    })?;

    let at = |times: &hdrhistogram::Histogram<u64>, quantile| {
        Some(times.value_at_quantile(quantile) as f64)
    };
    let mut measured = vec![
        (ALONE, Some(alone.rate())),
        (MEANWHILE, Some(meanwhile.rate())),
        (QUIET_P50, at(&quiet, 0.5)),
        (BUSY_P50, at(&busy, 0.5)),
        (QUIET_P99, at(&quiet, 0.99)),
        (BUSY_P99, at(&busy, 0.99)),
    ];
    let cpu = usage.server_cpu;
    let per_event = |cpu: Duration| cpu.as_secs_f64() * 1e6 / alone.events as f64;
    measured.push((SERVER_CPU_PER_EVENT, cpu.map(per_event)));
    measured.extend(usage.measured(&context.split));
    Ok(measured)
}

/// How much was read in which time.
#[derive(Clone, Copy, Debug, Default)]
struct Read {
    events: u64,
    elapsed: Duration,
}

impl Read {
    fn add(&mut self, other: Self) {
        self.events += other.events;
        self.elapsed += other.elapsed;
    }

    fn rate(&self) -> f64 {
        self.events as f64 / self.elapsed.as_secs_f64()
    }
}

/// Reads the whole log once.
fn read(context: &Context<'_>, server: &Server) -> Result<Read, Error> {
    let wish = Wish {
        shape: Shape::All,
        begin: Begin::Earliest,
        frame_bytes: context.settings.frame_bytes,
    };
    let started = Instant::now();
    let reader = Crowd::connect(context, server.grpc, 1, wish, |_| None)?;
    reader.caught_up()?;
    let elapsed = started.elapsed();
    let counts = reader.counts().next().unwrap_or_default();
    // The log never loses its first event here, and there is no filter.
    if counts.skipped || counts.jumped || counts.events != counts.place {
        let text = format!(
            "{} events led to sequence number {}",
            counts.events, counts.place
        );
        return Err(Error::Lost(text));
    }
    Ok(Read {
        events: counts.events,
        elapsed,
    })
}

const ALONE: Figure = Figure {
    name: "events_per_second",
    title: "events/s, alone",
    unit: Unit::Number,
};
const MEANWHILE: Figure = Figure {
    name: "events_per_second_while_live",
    title: "events/s, while live",
    unit: Unit::Number,
};
const QUIET_P50: Figure = Figure {
    name: "live_p50_us",
    title: "live p50, alone",
    unit: Unit::Micros,
};
const BUSY_P50: Figure = Figure {
    name: "live_p50_us_during_catchup",
    title: "live p50, meanwhile",
    unit: Unit::Micros,
};
const QUIET_P99: Figure = Figure {
    name: "live_p99_us",
    title: "live p99, alone",
    unit: Unit::Micros,
};
const BUSY_P99: Figure = Figure {
    name: "live_p99_us_during_catchup",
    title: "live p99, meanwhile",
    unit: Unit::Micros,
};
const SERVER_CPU_PER_EVENT: Figure = Figure {
    name: "server_cpu_us_per_event",
    title: "server CPU per event",
    unit: Unit::Micros,
};
