//! Whether the bridge behind an active webhook can take what Prelude now delivers. The challenge
//! does not tell: a bridge meets it without any keys, and then answers every delivery with 503.

use std::time::Duration;

use tokio::time::Instant;

use super::App;
use crate::{
    cli::exit::{self, Exit, Failure},
    config,
    doctor::{Readiness, readiness},
};

/// How often the bridge is asked whether it is ready by now.
const ASK_PAUSE: Duration = Duration::from_millis(200);
/// How long a bridge that has just started may take for its first fetch of keys.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Asks the bridge of this configuration, for a while. `None` where it cannot be asked, which is
/// said: it may run on another machine.
///
/// # Errors
/// It is there, has this app, and is not ready.
pub(super) async fn confirm(app: &App, deadline: Instant) -> Result<Option<bool>, Failure> {
    let listen = config::resolve(&app.sources)?.config.admin_listen;
    loop {
        let reason =
            match readiness(listen).await {
                Readiness::Ready { apps, .. } if apps.contains(&app.id) => return Ok(Some(true)),
                Readiness::Missing { apps, reasons } if apps.contains(&app.id) => {
                    if Instant::now() < deadline {
                        tokio::time::sleep(ASK_PAUSE).await;
                        continue;
                    }
                    let reasons = reasons.join("; ");
                    let cause =
                        format!("the webhook is active, but the bridge is not ready: {reasons}");
                    return Err(Failure::new(Exit::Failed, cause)
                    .help(
                        "it answers deliveries with 503 meanwhile, and Prelude sends them again \
                         for two weeks: nothing is lost yet",
                    )
                    .help("find out more with `prelude-bridge doctor`, and correct what it names"));
                }
                Readiness::Ready { .. } | Readiness::Missing { .. } => {
                    format!("the bridge at `admin_listen` ({listen}) does not serve this app")
                }
                Readiness::Unknown(reason) => reason,
            };
        exit::note(&format!(
            "the challenge was met, but whether the bridge is ready to take deliveries was not \
             checked: {reason}; ask its /readyz yourself"
        ));
        return Ok(None);
    }
}
