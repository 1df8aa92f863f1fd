//! The examples in the help of the commands of `webhook`.

pub(super) const CREATE_EXAMPLES: &str = "\
Examples:
  With the token of the configuration, for all events:
    prelude-bridge webhook create --config prelude-bridge.toml --url https://example.com/webhooks
  For sessions only:
    prelude-bridge webhook create --app 54e9ujn --url https://example.com/webhooks/{app} --event user.session.created,user.session.revoked";

pub(super) const LIST_EXAMPLES: &str = "\
Examples:
  The webhooks of the app that is configured:
    prelude-bridge webhook list --config prelude-bridge.toml
  What Prelude got as its last answer, for a program:
    prelude-bridge webhook list --app 54e9ujn --output json | jq '.webhooks[] | {id, last_http_code}'";

pub(super) const GET_EXAMPLES: &str = "\
Examples:
  Whether it is active, and its last answer:
    prelude-bridge webhook get web_01jqebhswje5ka3z6z7ezzc2xk --app 54e9ujn";

pub(super) const DEACTIVATE_EXAMPLES: &str = "\
Examples:
  While the bridge moves to another machine:
    prelude-bridge webhook deactivate web_01jqebhswje5ka3z6z7ezzc2xk --app 54e9ujn";

pub(super) const ACTIVATE_EXAMPLES: &str = "\
Examples:
  With the bridge running:
    prelude-bridge webhook activate web_01jqebhswje5ka3z6z7ezzc2xk --app 54e9ujn";

pub(super) const ADD_EVENT_EXAMPLES: &str = "\
Examples:
  Deletions too:
    prelude-bridge webhook add-event web_01jqebhswje5ka3z6z7ezzc2xk user.deleted --app 54e9ujn";

pub(super) const DELETE_EXAMPLES: &str = "\
Examples:
  Before it is created anew with another token:
    prelude-bridge webhook delete web_01jqebhswje5ka3z6z7ezzc2xk --app 54e9ujn";
