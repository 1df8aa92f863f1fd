//! Owns the JSON of JetStream's API: what is asked, and what of the answers is looked at. Durations are
//! nanoseconds there, and a limit that is not set is -1 or 0.

use serde::{Deserialize, Deserializer, Serialize};

/// Codes of errors: `server/errors.json` of nats-server has all of them.
pub(crate) mod code {
    pub(crate) const ACCOUNT_LIMITS: u64 = 10002;
    pub(crate) const NO_SUITABLE_PEERS: u64 = 10005;
    pub(crate) const NO_META_LEADER: u64 = 10008;
    pub(crate) const INSUFFICIENT_RESOURCES: u64 = 10023;
    pub(crate) const STREAMS_MAX: u64 = 10027;
    pub(crate) const NO_MESSAGE: u64 = 10037;
    pub(crate) const NOT_ENABLED_FOR_ACCOUNT: u64 = 10039;
    pub(crate) const STORAGE_EXCEEDED: u64 = 10047;
    pub(crate) const MESSAGE_TOO_LARGE: u64 = 10054;
    pub(crate) const NAME_EXISTS: u64 = 10058;
    pub(crate) const STREAM_NOT_FOUND: u64 = 10059;
    pub(crate) const OTHER_STREAM: u64 = 10060;
    pub(crate) const SUBJECT_OVERLAP: u64 = 10065;
    pub(crate) const WRONG_LAST_SEQUENCE: u64 = 10071;
    pub(crate) const REPLICAS_WITHOUT_CLUSTER: u64 = 10074;
    pub(crate) const NOT_ENABLED: u64 = 10076;
    pub(crate) const STORE_FAILED: u64 = 10077;
    pub(crate) const SEALED: u64 = 10109;
    pub(crate) const BYTES_MAX_REQUIRED: u64 = 10113;
    pub(crate) const STREAM_OFFLINE: u64 = 10118;
    pub(crate) const NO_LIMITS: u64 = 10120;
    pub(crate) const BYTES_MAX_EXCEEDED: u64 = 10122;
    pub(crate) const WRONG_LAST_SEQUENCE_IN_FLIGHT: u64 = 10164;
}

/// An error of the API.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct ApiError {
    #[serde(default)]
    pub(crate) err_code: u64,
    #[serde(default)]
    pub(crate) description: String,
}

/// An answer of the API: an error, or what was asked for.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum Response<T> {
    Error { error: ApiError },
    Answer(T),
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct StreamInfo {
    pub(crate) config: StreamConfig,
    /// When the stream was created: another one of the same name has another.
    pub(crate) created: String,
    #[serde(default)]
    pub(crate) state: StreamState,
    #[serde(default)]
    pub(crate) cluster: Option<ClusterInfo>,
    /// When the server said so, as RFC 3339.
    #[serde(default)]
    pub(crate) ts: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct StreamState {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    pub(crate) first_seq: u64,
    pub(crate) last_seq: u64,
    /// When the first message came, as RFC 3339.
    #[serde(default)]
    pub(crate) first_ts: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct ClusterInfo {
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) replicas: Vec<Replica>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Replica {
    #[serde(default)]
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) offline: bool,
}

/// The settings of a stream: those that are set, and those that could break a promise.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct StreamConfig {
    pub(crate) name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) description: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub(crate) subjects: Vec<String>,
    pub(crate) retention: String,
    pub(crate) max_consumers: i64,
    pub(crate) max_msgs: i64,
    pub(crate) max_bytes: i64,
    pub(crate) max_age: i64,
    pub(crate) max_msgs_per_subject: i64,
    pub(crate) max_msg_size: i64,
    pub(crate) discard: String,
    pub(crate) storage: String,
    pub(crate) num_replicas: usize,
    pub(crate) deny_delete: bool,
    pub(crate) deny_purge: bool,
    pub(crate) allow_direct: bool,
    #[serde(skip_serializing)]
    pub(crate) no_ack: bool,
    #[serde(skip_serializing)]
    pub(crate) sealed: bool,
    #[serde(skip_serializing)]
    pub(crate) allow_rollup_hdrs: bool,
    #[serde(skip_serializing)]
    pub(crate) allow_msg_ttl: bool,
    #[serde(skip_serializing)]
    pub(crate) allow_msg_counter: bool,
    #[serde(skip_serializing)]
    pub(crate) allow_msg_schedules: bool,
    #[serde(skip_serializing)]
    pub(crate) persist_mode: String,
    #[serde(skip_serializing)]
    pub(crate) mirror: Option<serde_json::Value>,
    #[serde(skip_serializing, deserialize_with = "null_is_empty")]
    pub(crate) sources: Vec<serde_json::Value>,
    #[serde(skip_serializing)]
    pub(crate) subject_transform: Option<serde_json::Value>,
    #[serde(skip_serializing)]
    pub(crate) republish: Option<serde_json::Value>,
    #[serde(skip_serializing)]
    pub(crate) consumer_limits: ConsumerLimits,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ConsumerLimits {
    pub(crate) inactive_threshold: i64,
}

/// Go writes an empty list as null.
fn null_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Of `$JS.API.INFO`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct AccountInfo {
    pub(crate) limits: AccountLimits,
    /// Limits by the number of replicas (`R1`, `R3`): an account has these or those.
    pub(crate) tiers: std::collections::HashMap<String, Tier>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Tier {
    pub(crate) limits: AccountLimits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct AccountLimits {
    pub(crate) max_storage: i64,
    pub(crate) max_consumers: i64,
}

/// The answer to `$JS.API.STREAM.MSG.GET`. It may have some MiB, which [`Response`] would copy.
#[derive(Deserialize)]
pub(crate) struct StoredMessage {
    pub(crate) error: Option<ApiError>,
    pub(crate) message: Option<StoredData>,
}

#[derive(Deserialize)]
pub(crate) struct StoredData {
    pub(crate) seq: u64,
    /// In base64.
    #[serde(default)]
    pub(crate) data: String,
}

/// What is said of a published message.
#[derive(Debug, Deserialize)]
pub(crate) struct PublishAck {
    #[serde(default)]
    pub(crate) stream: String,
    #[serde(default)]
    pub(crate) seq: u64,
    #[serde(default)]
    pub(crate) duplicate: bool,
    pub(crate) error: Option<ApiError>,
}
