//! The warning of a store on other machines to which events, or even the login, go in plain text. Knows what is
//! configured: that a server asks for TLS by itself is not seen here.

use super::{Login, Nats, Postgres, Store};

impl Store {
    /// What everybody on the way can read. Credentials files send only a signature, and PostgreSQL's SCRAM
    /// only a proof.
    pub(in crate::config) fn warning(&self) -> Option<String> {
        let (_, hosts) = self.engine()?;
        let far = hosts.iter().find(|host| !host.is_local())?;
        match self {
            Self::Nats(Nats {
                tls: None, login, ..
            }) => {
                let secret = match login {
                    Login::Token(_) | Login::User { .. } => {
                        ", and so does the password or token of the store"
                    }
                    Login::None | Login::CredentialsFile(_) => "",
                };
                Some(format!(
                    "unless NATS asks for TLS, events go to {far} in plain text{secret}: write `tls://` instead of \
                     `nats://`"
                ))
            }
            Self::Postgres(Postgres { tls: None, .. }) => Some(format!(
                "everybody on the network between can read and change the events, because they go to {far} in plain \
                 text: remove `sslmode=disable` from the URL of the store"
            )),
            Self::Nats(_) | Self::Postgres(_) | Self::Embedded | Self::Memory => None,
        }
    }
}
