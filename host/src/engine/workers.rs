//! Threads for private-key operations, so that cells keep flowing while an onion is opened, built or an answer signed.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

type Job = Box<dyn FnOnce() + Send>;

/// A fixed set of threads that run jobs in the order in which they come.
///
/// How many jobs can wait is bounded by who asks: a node has a fixed number of places for onions, and a client opens a bounded number of
/// circuits at once.
#[derive(Clone)]
pub(crate) struct Workers {
    jobs: Sender<Job>,
}

impl Workers {
    /// Starts `threads` threads, which end when the last handle is dropped.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub(crate) fn start(threads: usize) -> std::io::Result<Self> {
        let (jobs, waiting) = channel();
        let waiting = Arc::new(Mutex::new(waiting));
        for number in 0..threads.max(1) {
            let waiting = Arc::clone(&waiting);
            thread::Builder::new().name(format!("bulbil-key-{number}")).spawn(move || run(&waiting))?;
        }
        Ok(Self { jobs })
    }

    /// Runs `job` on one of the threads.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) {
        // Cannot fail: the threads live as long as a sender does.
        let _sent = self.jobs.send(Box::new(job));
    }

    /// Runs `job` on one of the threads and waits for what it answers; `None` if it panicked.
    pub(crate) async fn call<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.run(move || {
            let _receiver_gone = reply.send(job());
        });
        answer.await.ok()
    }
}

fn run(waiting: &Mutex<Receiver<Job>>) {
    loop {
        let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            // A job that panics is a bug; it must not take the thread and with it every later job.
            Ok(job) => drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(job))),
            Err(_) => return,
        }
    }
}
