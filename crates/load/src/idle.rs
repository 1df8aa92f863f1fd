//! Measures what subscribers cost that only wait, each with a connection of its own, and how long
//! it takes to wake them all.

use std::time::Instant;

use super::{
    Context, Error, Shape, Store,
    machine::open_files,
    report::{Figure, Line, Measured, Unit, Value},
    sender::{Connection, micros},
    subscriber::{Begin, Crowd, Wish},
};

/// Sent before the measurement begins, so that code and memory are where they will be.
const WARM_UP_BATCHES: u64 = 20;

/// Files that a process needs beside its connections.
const OTHER_FILES: u64 = 200;

/// How many wait.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many subscribers. Fewer are used where the system allows fewer open files.
    pub subscribers: usize,
}

pub(super) fn run(context: &Context<'_>, options: &Options) -> Result<(), Error> {
    let subscribers = allowed(context, options.subscribers);
    let mut runs = Vec::new();
    for run in 1..=context.settings.runs {
        context.progress(format_args!(
            "idle: {subscribers} subscribers, run {run} of {}",
            context.settings.runs
        ))?;
        runs.push(measure(context, subscribers)?);
    }
    let settings = vec![("subscribers", Value::count(subscribers))];
    context.report(&Line::new("idle", settings, context.settings.runs).sum_up(&runs))
}

/// How many of the wanted connections this process, and the server after it, can have open.
fn allowed(context: &Context<'_>, wanted: usize) -> usize {
    let Some(files) = open_files(wanted as u64 + OTHER_FILES) else {
        return wanted;
    };
    let room = usize::try_from(files.saturating_sub(OTHER_FILES)).unwrap_or(usize::MAX);
    if room < wanted {
        context.observer.warn(&format!(
            "this user may open {files} files: {room} subscribers are measured instead of {wanted} \
             (raise the limit with `ulimit -n`)"
        ));
    }
    wanted.min(room).max(1)
}

fn measure(context: &Context<'_>, subscribers: usize) -> Result<Measured, Error> {
    let server = context.server(Store::Memory)?;
    let mut sender = Connection::open(server.webhook)?;
    for number in 0..WARM_UP_BATCHES {
        sender.post(&context.request(number..number + 1)?)?;
    }
    let wish = Wish {
        shape: Shape::All,
        begin: Begin::Latest,
        frame_bytes: context.settings.frame_bytes,
    };
    let before = server.process().resident_bytes();
    let started = Instant::now();
    let crowd = Crowd::connect(context, server.grpc, subscribers, wish, |_| None)?;
    crowd.caught_up()?;
    let connecting = started.elapsed();
    let count = crowd.len() as f64;
    let each = |after: Option<u64>| {
        let grown = after?.saturating_sub(before?);
        Some(grown as f64 / count)
    };
    let idle = each(server.process().resident_bytes());

    let request = context.request(WARM_UP_BATCHES..WARM_UP_BATCHES + 1)?;
    let sent = Instant::now();
    sender.post(&request)?;
    crowd.delivered(crowd.len() as u64)?;
    let woken = sent.elapsed();
    crowd.check(Shape::All, 1)?;
    Ok(vec![
        (BYTES_PER_SUBSCRIBER, idle),
        (
            BYTES_PER_SUBSCRIBER_WOKEN,
            each(server.process().resident_bytes()),
        ),
        (CONNECTED_PER_SECOND, Some(count / connecting.as_secs_f64())),
        (ONE_EVENT_TO_ALL, Some(micros(woken) as f64)),
    ])
}

const BYTES_PER_SUBSCRIBER: Figure = Figure {
    name: "idle_bytes_per_subscriber",
    title: "memory per subscriber",
    unit: Unit::Bytes,
};
const BYTES_PER_SUBSCRIBER_WOKEN: Figure = Figure {
    name: "woken_bytes_per_subscriber",
    title: "after one event",
    unit: Unit::Bytes,
};
const CONNECTED_PER_SECOND: Figure = Figure {
    name: "connected_per_second",
    title: "connected/s",
    unit: Unit::Number,
};
const ONE_EVENT_TO_ALL: Figure = Figure {
    name: "one_event_to_all_us",
    title: "one event to all",
    unit: Unit::Micros,
};
