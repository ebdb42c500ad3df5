//! Stopping: the first SIGTERM or SIGINT asks the process to end what it does, the second ends it at once.

use std::{io, sync::Arc};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// The exit code after a second signal: that of a shell for a program ended by SIGINT.
pub const INTERRUPTED: i32 = 130;

/// Tells everybody who holds a clone that it is time to stop.
#[derive(Debug, Clone)]
pub struct Shutdown {
    requested: Arc<watch::Sender<bool>>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Shutdown {
    /// One that only [`Self::request`] triggers.
    #[must_use]
    pub fn new() -> Self {
        Self { requested: Arc::new(watch::Sender::new(false)) }
    }

    /// One that the first SIGTERM or SIGINT triggers too; the second exits the process with [`INTERRUPTED`].
    ///
    /// # Errors
    /// The system refuses to install a handler.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn on_signals() -> io::Result<Self> {
        let this = Self::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = this.clone();
        tokio::spawn(async move {
            for again in [false, true] {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                if again {
                    std::process::exit(INTERRUPTED);
                }
                tracing::info!("shutting down; a second signal ends at once");
                shutdown.request();
            }
        });
        Ok(this)
    }

    /// Asks everybody to stop. Asking again changes nothing.
    pub fn request(&self) {
        self.requested.send_replace(true);
    }

    /// Whether somebody has asked.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        *self.requested.borrow()
    }

    /// Resolves when somebody asks, at once if somebody has.
    pub async fn requested(&self) {
        // The sender lives in `self`, so waiting ends only with the value true.
        let _ = self.requested.subscribe().wait_for(|&requested| requested).await;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        process::{Child, Command, Stdio},
    };

    use super::*;

    #[tokio::test]
    async fn resolves_for_every_clone_and_for_latecomers() {
        let shutdown = Shutdown::new();
        assert!(!shutdown.is_requested());
        let waiting = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.requested().await }
        });
        shutdown.clone().request();
        shutdown.request();
        waiting.await.unwrap();
        shutdown.requested().await;
        assert!(shutdown.is_requested());
    }

    /// The process that the tests below send signals to.
    #[test]
    #[ignore = "run by the other tests as a process of its own"]
    fn child() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let shutdown = Shutdown::on_signals().unwrap();
            println!("\nready");
            shutdown.requested().await;
            println!("\nstopping");
            if std::env::var_os("BULBIL_TEST_LINGER").is_some() {
                std::future::pending::<()>().await;
            }
        });
    }

    fn start(linger: bool) -> (Child, impl FnMut(&str)) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "--ignored", "--nocapture", "shutdown::tests::child"]).stdout(Stdio::piped());
        if linger {
            command.env("BULBIL_TEST_LINGER", "1");
        }
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let wait_for = move |line: &str| assert!(lines.any(|read| read.unwrap() == line), "no line {line:?}");
        (child, wait_for)
    }

    fn kill(child: &Child, signal: &str) {
        let status = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    #[test]
    fn first_signal_is_graceful() {
        for signal in ["-TERM", "-INT"] {
            let (mut child, mut wait_for) = start(false);
            wait_for("ready");
            kill(&child, signal);
            wait_for("stopping");
            assert!(child.wait().unwrap().success());
        }
    }

    #[test]
    fn second_signal_ends_at_once() {
        let (mut child, mut wait_for) = start(true);
        wait_for("ready");
        kill(&child, "-INT");
        wait_for("stopping");
        kill(&child, "-TERM");
        assert_eq!(child.wait().unwrap().code(), Some(INTERRUPTED));
    }
}
