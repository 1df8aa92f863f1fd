//! What strangers can make the bridge write: refusals are counted all and logged a few times, on
//! every port that they reach.

use tonic::{Request, metadata::MetadataValue};

use prelude_bridge::proto::{Filter, GetRangeRequest, SubscribeRequest};

use crate::{
    access::token,
    support::{self, Bridge, Setup},
};

const REFUSALS: usize = 150;
const LINES: &str = "7";

/// A bridge that is soon quiet, and stays so for the time of a test.
async fn bridge() -> (Bridge, String) {
    let setup = Setup::default()
        .with("limits.refusals.lines_at_once", LINES)
        .with("limits.refusals.line_interval", "1h");
    let mut bridge = setup.prepare();
    let token = token(&bridge.data_dir(), &["somebody"]);
    bridge.restart().await;
    (bridge, token)
}

/// How many lines say this.
fn lines(bridge: &Bridge, said: &str) -> usize {
    let log = bridge.stderr();
    log.lines().filter(|line| line.contains(said)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_calls_are_counted_all_and_logged_a_few_times() {
    let (bridge, token) = bridge().await;
    let mut client = bridge.client().await;
    for _ in 0..REFUSALS {
        client.get_range(GetRangeRequest {}).await.unwrap_err();
    }
    bridge
        .counts(
            r#"prelude_bridge_streams_ended_total{reason="TOKEN_INVALID"}"#,
            REFUSALS as f64,
        )
        .await;
    assert_eq!(lines(&bridge, "call refused").to_string(), LINES);

    // Subscriptions with a credential that ask for nonsense are of another kind.
    let bearer: MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
    for _ in 0..REFUSALS {
        let filter = Filter {
            types: vec!["a.**.b".to_owned()],
            ..Filter::default()
        };
        let mut request = Request::new(SubscribeRequest {
            filter: Some(filter),
            ..SubscribeRequest::default()
        });
        let headers = request.metadata_mut();
        headers.insert("authorization", bearer.clone());
        client.subscribe(request).await.unwrap_err();
    }
    bridge
        .counts(
            r#"prelude_bridge_streams_ended_total{reason="FILTER_INVALID"}"#,
            REFUSALS as f64,
        )
        .await;
    assert_eq!(lines(&bridge, "subscription refused").to_string(), LINES);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_requests_are_counted_all_and_logged_a_few_times() {
    let (bridge, _) = bridge().await;
    for _ in 0..REFUSALS {
        let request = support::Request::get("/wp-login.php");
        let answer = request.send(bridge.addresses.webhook).await.unwrap();
        assert_eq!(answer.status, 404);
    }
    bridge
        .counts(
            r#"prelude_bridge_webhook_requests_total{outcome="path_unknown",status="404"}"#,
            REFUSALS as f64,
        )
        .await;
    assert_eq!(lines(&bridge, "request refused").to_string(), LINES);
    bridge.finish().await;
}
