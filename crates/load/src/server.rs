//! Owns the bridge that is measured: this very program as `serve`, on free ports, in a temporary
//! directory, with nothing of the environment's settings.

use std::{fs, net::SocketAddr, process::Command};

use tempfile::TempDir;

use super::{Context, Error, Store, events::APP_ID, machine::Process, process::ServerProcess};

/// What the names of the bridge's variables begin with.
const ENVIRONMENT_PREFIX: &str = "PRELUDE_BRIDGE_";

/// It never asks for a challenge, so nobody has to know it.
const VERIFICATION_TOKEN: &str = "bench-verification-token";

/// Connections and streams beyond the defaults: the load of a whole machine comes from one address.
const LIMITS: [(&str, &str); 6] = [
    ("LIMITS_WEBHOOK_CONNECTIONS_PER_ADDRESS_MAX", "10000"),
    ("LIMITS_GRPC_CONNECTIONS_MAX", "100000"),
    ("LIMITS_GRPC_STREAMS_MAX", "100000"),
    // All subscribers are on this machine.
    ("LIMITS_GRPC_CONNECTIONS_PER_ADDRESS_MAX", "100000"),
    ("LIMITS_GRPC_STREAMS_PER_ADDRESS_MAX", "100000"),
    ("LIMITS_GRPC_SLOW_CONSUMER_TIMEOUT", "300s"),
];

/// A running bridge.
pub(super) struct Server {
    pub(super) webhook: SocketAddr,
    pub(super) grpc: SocketAddr,
    process: ServerProcess,
    /// Removed when the server is gone.
    _directory: TempDir,
}

impl Server {
    /// Starts one and waits until it is ready. `settings` are variables without their prefix.
    pub(super) fn start(
        context: &Context<'_>,
        store: Store,
        settings: &[(&str, &str)],
    ) -> Result<Self, Error> {
        let directory = directory(context)?;
        let files = [
            ("bridge.toml", config()),
            ("key.pem", context.key.public_pem()?),
            ("token.txt", VERIFICATION_TOKEN.to_owned()),
        ];
        for (name, text) in files {
            fs::write(directory.path().join(name), text)
                .map_err(Error::system("the server's files cannot be written"))?;
        }
        let command = command(&directory, store, settings)?;
        let process = ServerProcess::start(command, &context.split, context.stop)?;
        Ok(Self {
            webhook: process.address("webhook")?,
            grpc: process.address("grpc")?,
            process,
            _directory: directory,
        })
    }

    pub(super) fn process(&self) -> Process {
        self.process.process()
    }
}

fn directory(context: &Context<'_>) -> Result<TempDir, Error> {
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix("prelude-bridge-bench-");
    let made = match &context.settings.directory {
        Some(parent) => builder.tempdir_in(parent),
        None => builder.tempdir(),
    };
    made.map_err(Error::system("no temporary directory can be made"))
}

fn config() -> String {
    format!(
        "[[apps]]\nid = \"{APP_ID}\"\nverification_token_file = \"token.txt\"\n\
         pem_file = \"key.pem\"\n"
    )
}

fn command(directory: &TempDir, store: Store, settings: &[(&str, &str)]) -> Result<Command, Error> {
    let program =
        std::env::current_exe().map_err(Error::system("this program's own file is not known"))?;
    let mut command = Command::new(program);
    let anywhere = "127.0.0.1:0";
    command
        .args(["serve", "--log-format", "json", "--log-level", "info"])
        .args(["--config", "bridge.toml", "--store", store.name()])
        .args(["--webhook-listen", anywhere])
        .args(["--grpc-listen", anywhere])
        .args(["--admin-listen", anywhere])
        .arg("--data-dir")
        .arg(directory.path().join("data"))
        .current_dir(directory.path());
    let is_setting = |name: &std::ffi::OsString| {
        let name = name.to_string_lossy();
        name.starts_with(ENVIRONMENT_PREFIX)
    };
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_setting(name)) {
        command.env_remove(name);
    }
    for (name, value) in LIMITS.iter().chain(settings) {
        command.env(format!("{ENVIRONMENT_PREFIX}{name}"), value);
    }
    Ok(command)
}
