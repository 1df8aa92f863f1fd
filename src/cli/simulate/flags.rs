//! The flags that describe a run: which events, in which form, and what goes wrong. Turns them into
//! the simulator's own types, whose names and bounds they share.

use std::time::Duration;

use serde::{Deserialize, de::IntoDeserializer};

use crate::simulator::{
    ApiStyle, EventType, Faults, WireStyle,
    batch::{ItemStyle, PayloadPlace, TypeKey},
    events::IdStyle,
    keys::{AlgLabel, Salt, SetStyle, SignatureStyle},
    options::parse_duration,
    traffic::{Burst, Traffic},
};

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Which events")]
pub(super) struct TrafficArgs {
    /// Events a second; 0 for as fast as it goes
    #[arg(long, value_name = "N", default_value_t = 10.0)]
    rate: f64,

    /// Events in a batch, or single events sent at once
    #[arg(long, value_name = "N", default_value_t = 5)]
    batch: usize,

    /// End after N events [default: on Ctrl-C]
    #[arg(long, value_name = "N")]
    count: Option<u64>,

    /// End after this time
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    duration: Option<Duration>,

    /// Only events of these types [default: all of the source's kind]
    #[arg(
        long,
        value_name = "TYPE",
        value_delimiter = ',',
        value_parser = str::parse::<EventType>
    )]
    types: Vec<EventType>,

    /// This many events at once, on top of the rate
    #[arg(long, value_name = "N")]
    burst: Option<u64>,

    /// How far apart bursts are
    #[arg(
        long,
        value_name = "TIME",
        default_value = "10s",
        value_parser = parse_duration,
        requires = "burst"
    )]
    burst_every: Duration,
}

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "What Prelude does not document")]
pub(super) struct WireArgs {
    /// Salt of the signatures in bytes: 32, 20, 0 or longest
    #[arg(long, value_name = "BYTES", default_value = "32", value_parser = named::<Salt>)]
    salt: Salt,

    /// End signatures in `=`
    #[arg(long)]
    padding: bool,

    /// Send `X-Webhook-Signature-Key-Id`
    #[arg(long)]
    key_id_header: bool,

    /// Send a W3C `traceparent`
    #[arg(long)]
    traceparent: bool,

    /// Where an item keeps its payload: payload, data or inline
    #[arg(long, value_name = "PLACE", default_value = "payload", value_parser = named::<PayloadPlace>)]
    item: PayloadPlace,

    /// Which member names the type: type or event
    #[arg(long, value_name = "KEY", default_value = "type", value_parser = named::<TypeKey>)]
    type_key: TypeKey,

    /// How event ids look: prefixed, uuid, number or none
    #[arg(long, value_name = "STYLE", default_value = "prefixed", value_parser = named::<IdStyle>)]
    ids: IdStyle,

    /// The `alg` of published keys: RS256, PS256 or none
    #[arg(long, value_name = "LABEL", default_value = "RS256", value_parser = named::<AlgLabel>)]
    alg: AlgLabel,

    /// Publish keys of other kinds in the set, too
    #[arg(long)]
    foreign_keys: bool,

    /// Challenge with a number beyond 2^53
    #[arg(long)]
    wide_challenge: bool,
}

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "What the management API refuses")]
pub(super) struct ApiArgs {
    /// Refuse webhooks with events of these types; repeatable, or with commas
    #[arg(long = "refuse-event", value_name = "TYPE", value_delimiter = ',')]
    refuse_events: Vec<String>,

    /// Name only the parameter in such a refusal, and not the event
    #[arg(long)]
    vague_refusals: bool,
}

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "What goes wrong (shares from 0 to 1)")]
pub(super) struct FaultArgs {
    /// Throw this share of answers away, as if they had never come
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    lose_answers: f64,

    /// Close the connection of this share of attempts within milliseconds
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    hang_up: f64,

    /// Send this share of acknowledged batches again
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    duplicates: f64,

    /// Hold this share of batches back, so that later ones overtake them
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    hold_back: f64,

    /// Date this share of events up to two weeks back
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    late: f64,
}

impl TrafficArgs {
    pub(super) fn traffic(&self) -> Traffic {
        let as_fast_as_it_goes = self.rate == 0.0;
        Traffic {
            events_per_second: (!as_fast_as_it_goes).then_some(self.rate),
            batch_events: self.batch,
            events_max: self.count,
            duration: self.duration,
            types: self.types.clone(),
            apps: Vec::new(),
            burst: self.burst.map(|events| Burst {
                every: self.burst_every,
                events,
            }),
        }
    }
}

impl ApiArgs {
    pub(super) fn style(&self) -> ApiStyle {
        ApiStyle {
            refuse_events: self.refuse_events.clone(),
            vague_refusals: self.vague_refusals,
        }
    }
}

impl WireArgs {
    pub(super) fn style(&self) -> WireStyle {
        WireStyle {
            item: ItemStyle {
                payload: self.item,
                type_key: self.type_key,
                ids: self.ids,
                ..ItemStyle::default()
            },
            signature: SignatureStyle {
                salt: self.salt,
                padding: self.padding,
            },
            key_set: SetStyle {
                alg: self.alg,
                foreign_keys: self.foreign_keys,
            },
            key_id_header: self.key_id_header,
            traceparent: self.traceparent,
            wide_challenge: self.wide_challenge,
        }
    }
}

impl FaultArgs {
    pub(super) fn faults(&self) -> Faults {
        Faults {
            lose_answers: self.lose_answers,
            hang_up: self.hang_up,
            duplicates: self.duplicates,
            hold_back: self.hold_back,
            late: self.late,
            ..Faults::default()
        }
    }
}

/// A value by its name in the wire format, so that flags and scenario files spell it alike.
pub(in crate::cli) fn named<T: for<'de> Deserialize<'de>>(name: &str) -> Result<T, String> {
    let deserializer: serde::de::value::StrDeserializer<'_, serde::de::value::Error> =
        name.into_deserializer();
    T::deserialize(deserializer).map_err(|error| error.to_string())
}
