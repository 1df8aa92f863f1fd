//! docs/setup.md, run as it is written: every block of commands, in bash, against the built program.
//! The ports are free ones instead of those in the page, and the reader's own facts (the URL, the
//! management key, where Prelude is) are the test's. Nothing else is changed.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use tempfile::tempdir;

use crate::{cli::program, setup::free_port};

/// Long enough for a loaded machine, and never waited out when all is well.
const SOON: Duration = Duration::from_secs(90);

/// The page with its own ports and URL replaced.
struct Page {
    /// The blocks of commands, each with the heading that it is below.
    blocks: Vec<(String, String)>,
    ports: Ports,
}

#[derive(Clone, Copy)]
struct Ports {
    simulator: u16,
    webhook: u16,
    grpc: u16,
    admin: u16,
}

impl Ports {
    fn free() -> Self {
        Self {
            simulator: free_port(),
            webhook: free_port(),
            grpc: free_port(),
            admin: free_port(),
        }
    }
}

impl Page {
    fn read(ports: Ports) -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/setup.md");
        let text = fs::read_to_string(path).unwrap();
        let text = text
            .replace("127.0.0.1:7070", &format!("127.0.0.1:{}", ports.simulator))
            .replace("127.0.0.1:8080", &format!("127.0.0.1:{}", ports.webhook))
            .replace(
                "https://example.com",
                &format!("http://127.0.0.1:{}", ports.webhook),
            );
        let (mut blocks, mut heading, mut block) = (Vec::new(), String::new(), None::<String>);
        for line in text.lines() {
            match (&mut block, line) {
                (None, "```sh") => block = Some(String::new()),
                (None, line) if line.starts_with('#') => {
                    heading = line.trim_start_matches(['#', ' ']).to_owned();
                }
                (None, _) => {}
                (Some(commands), "```") => {
                    blocks.push((heading.clone(), std::mem::take(commands)));
                    block = None;
                }
                (Some(commands), line) => {
                    commands.push_str(line);
                    commands.push('\n');
                }
            }
        }
        Self { blocks, ports }
    }

    fn section(&self, heading: &str) -> Vec<&str> {
        let blocks = self.blocks.iter();
        blocks
            .filter(|(above, _)| above == heading)
            .map(|(_, block)| block.as_str())
            .collect()
    }
}

/// A terminal in which a block runs; it ends with the test.
struct Terminal {
    child: Child,
    lines: mpsc::Receiver<String>,
    said: Vec<String>,
}

impl Terminal {
    /// Runs a block in a directory. Whatever it says on either stream is read.
    fn run(block: &str, ports: Ports, directory: &Path, environment: &[(&str, &str)]) -> Self {
        let shell = format!(
            r#"
            set -e
            prelude-bridge() {{
                local command=$1
                shift
                case $command in
                    simulate) set -- --listen 127.0.0.1:{simulator} "$@" ;;
                    trigger) set -- --to "http://127.0.0.1:{webhook}/webhooks/{{app}}" "$@" ;;
                esac
                "$PROGRAM" "$command" "$@"
            }}
            {block}"#,
            simulator = ports.simulator,
            webhook = ports.webhook,
        );
        let key = directory.join("management-key");
        fs::write(&key, "simulated-management-key\n").unwrap();
        let mut command = Command::new("bash");
        command
            .args(["--norc", "-c", &shell])
            .current_dir(directory)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("PROGRAM", program(&[]).get_program())
            .env("HOME", directory)
            .env(
                "PRELUDE_BRIDGE_SERVER",
                format!("http://127.0.0.1:{}", ports.grpc),
            )
            .envs(environment.iter().copied())
            .stdin(fs::File::open(key).unwrap())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        for (listener, port) in [
            ("WEBHOOK", ports.webhook),
            ("GRPC", ports.grpc),
            ("ADMIN", ports.admin),
        ] {
            let address = format!("127.0.0.1:{port}");
            command.env(format!("PRELUDE_BRIDGE_{listener}_LISTEN"), address);
        }
        let mut child = command.spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        let errors = sender.clone();
        // Each ends with its stream.
        thread::spawn(move || {
            stdout
                .map_while(Result::ok)
                .for_each(|line| drop(sender.send(line)));
        });
        thread::spawn(move || {
            stderr
                .map_while(Result::ok)
                .for_each(|line| drop(errors.send(line)));
        });
        Self {
            child,
            lines,
            said: Vec::new(),
        }
    }

    /// Waits until it says something with these words.
    fn hears(&mut self, words: &str) {
        while let Ok(line) = self.lines.recv_timeout(SOON) {
            self.said.push(line);
            if self.said.last().is_some_and(|line| line.contains(words)) {
                return;
            }
        }
        unreachable!("no {words:?}: {:#?}", self.said);
    }

    /// Waits until it has ended, and returns what it said.
    fn ends(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + SOON;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            thread::sleep(Duration::from_millis(20));
        };
        while let Ok(line) = self.lines.recv_timeout(SOON) {
            self.said.push(line);
        }
        (status, std::mem::take(&mut self.said).join("\n"))
    }

    #[track_caller]
    fn succeeds(self) -> String {
        let (status, said) = self.ends();
        assert!(status.success(), "{status}: {said}");
        said
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The whole group: the program is a child of the shell.
        if let Ok(None) = self.child.try_wait() {
            let group = format!("-{}", self.child.id());
            let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        }
        let _ = self.child.wait();
    }
}

#[test]
fn every_block_of_the_page_runs_as_it_is_written() {
    let page = Page::read(Ports::free());
    let run = |block: &str, directory: &Path| Terminal::run(block, page.ports, directory, &[]);
    let directory = tempdir().unwrap();
    let home = directory.path();

    let [simulate, register, serve, tail] = page.section("Without an account")[..] else {
        unreachable!("the page was changed: change this test, too");
    };
    let mut simulator = run(simulate, home);
    simulator.hears("Management API");
    let mut setup = run(register, home);
    setup.hears("created the webhook");
    let mut bridge = run(serve, home);
    let said = setup.succeeds();
    assert!(
        said.contains("activated it") && !said.contains("not checked"),
        "{said}"
    );
    bridge.hears("INFO ready");
    let mut events = run(tail, home);
    events.hears("54e9ujn");

    let triggers = page.section("`prelude-bridge trigger`");
    let doctors = page.section("`prelude-bridge doctor`");
    for block in &triggers {
        let said = run(block, home).succeeds();
        assert!(said.contains("is in the log"), "{said}");
    }
    for block in &doctors {
        let said = run(block, home).succeeds();
        assert!(said.contains("all is well"), "{said}");
    }
    drop((events, bridge));

    // A real Prelude is elsewhere: its API, and the keys of the app.
    let api = format!("http://127.0.0.1:{}", page.ports.simulator);
    let keys = format!("{api}/apps/54e9ujn/.well-known/jwks.json");
    let prelude = [
        ("PRELUDE_API_URL", api.as_str()),
        ("PRELUDE_BRIDGE_JWKS_URL", keys.as_str()),
    ];
    let other = tempdir().unwrap();
    let [register, serve, tail] = page.section("With Prelude")[..] else {
        unreachable!("the page was changed: change this test, too");
    };
    let run = |block: &str| Terminal::run(block, page.ports, other.path(), &prelude);
    drop(simulator);
    let mut simulator = Terminal::run(simulate, page.ports, home, &[]);
    simulator.hears("Management API");
    let mut setup = run(register);
    setup.hears("created the webhook");
    let _bridge = run(serve);
    let said = setup.succeeds();
    assert!(said.contains("activated it"), "{said}");
    run(tail).hears("54e9ujn");

    let tried = 4 + 3 + triggers.len() + doctors.len();
    assert!(!triggers.is_empty() && !doctors.is_empty());
    assert_eq!(
        tried,
        page.blocks.len(),
        "the page has a block that is not tried"
    );
}
