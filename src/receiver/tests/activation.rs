use super::*;

const GOOD: &str =
    "event=activate&verification_token=a+token+%26%20more&challenge=1234567890&app_id=54e9ujn";

async fn get(bridge: &Bridge, target: &str) -> Answer {
    bridge
        .ask(format!("GET {target} HTTP/1.1\r\nHost: bridge\r\n\r\n"))
        .await
}

#[tokio::test]
async fn a_challenge_is_answered_on_both_paths() {
    let bridge = Bridge::start().await;
    for path in [
        "/webhooks/54e9ujn",
        "/webhooks",
        "/webhooks/%354e9ujn",
        "/webhooks/",
    ] {
        let answer = get(&bridge, &format!("{path}?{GOOD}")).await;
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (200, r#"{"challenge":1234567890}"#)
        );
        answer.json();
    }
    let counted = r#"outcome="challenge_answered",status="200"} 4"#;
    assert!(bridge.metrics.render().contains(counted));
}

#[tokio::test]
async fn the_integer_comes_back_digit_for_digit() {
    let bridge = Bridge::start().await;
    for integer in [
        "0",
        "-1",
        "9007199254740993",
        "123456789012345678901234567890",
    ] {
        let query = GOOD.replace("1234567890", integer);
        let answer = get(&bridge, &format!("/webhooks/{APP}?{query}")).await;
        assert_eq!(answer.body, format!(r#"{{"challenge":{integer}}}"#));
    }
}

#[tokio::test]
async fn what_is_no_challenge_is_refused() {
    let bridge = Bridge::start().await;
    let without = |name: &str| {
        let rest: Vec<&str> = GOOD.split('&').filter(|it| !it.starts_with(name)).collect();
        rest.join("&")
    };
    for query in [
        String::new(),
        without("event"),
        without("verification_token"),
        without("challenge"),
        without("app_id"),
        GOOD.replace("activate", "deactivate"),
        GOOD.replace("activate", "Activate"),
        GOOD.replace("1234567890", ""),
        GOOD.replace("1234567890", "12ab"),
        GOOD.replace("1234567890", "x12"),
        GOOD.replace("1234567890", "%2012"),
        GOOD.replace("1234567890", "1.5"),
        GOOD.replace("1234567890", "%2B5"),
        GOOD.replace("1234567890", "007"),
        GOOD.replace("1234567890", &"9".repeat(129)),
        format!("{GOOD}&challenge=2"),
        format!("{GOOD}&app_id=54e9ujn"),
        format!("{GOOD}&verification_token=x"),
    ] {
        let answer = get(&bridge, &format!("/webhooks/{APP}?{query}")).await;
        answer.assert_refused(400, "challenge_malformed");
    }
}

#[tokio::test]
async fn a_wrong_token_or_app_is_refused_and_the_token_is_not_repeated() {
    let bridge = Bridge::start_with(Options::default(), &[APP, "other"]).await;
    for token in [
        "",
        "a",
        "A+token+%26%20more",
        "a+token+%26%20mor",
        "a+token+%26%20more+",
    ] {
        let query = GOOD.replace("a+token+%26%20more", token);
        let answer = get(&bridge, &format!("/webhooks/{APP}?{query}")).await;
        answer.assert_refused(401, "token_mismatch");
        assert!(!answer.body.contains("a token"));
    }
    let target = format!("/webhooks/{APP}?{}", GOOD.replace(APP, "unknown"));
    get(&bridge, &target)
        .await
        .assert_refused(404, "app_unknown");
    let target = format!("/webhooks/unknown?{GOOD}");
    get(&bridge, &target)
        .await
        .assert_refused(404, "app_unknown");
    // Both are configured, but they are not the same.
    let target = format!("/webhooks/other?{GOOD}");
    get(&bridge, &target)
        .await
        .assert_refused(404, "app_unknown");
}

#[test]
fn a_token_does_not_show() {
    let tokens = VerificationTokens::new(vec![VerificationToken::new(TOKEN)]);
    let shown = format!("{tokens:?}");
    assert!(shown.contains("VerificationToken(redacted)") && !shown.contains(TOKEN));
}
