//! Which streams may have become ready: every stream wakes by its own token, and the engine is woken once for all of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

use bulbil_core::circuit::LinkId;
use bulbil_core::node::ConversationId;
use tokio::sync::Notify;

/// A stream of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// A link's connection.
    Link(LinkId),
    /// What a conversation is attached to.
    Conversation(ConversationId),
}

/// Tokens that have been woken and not yet looked after.
#[derive(Default)]
pub(crate) struct Readiness {
    woken: Mutex<Vec<Arc<TokenWaker>>>,
    engine: Notify,
}

/// Wakes one token. It is in the list at most once.
pub(crate) struct TokenWaker {
    token: Token,
    listed: AtomicBool,
    readiness: Arc<Readiness>,
}

impl Wake for TokenWaker {
    fn wake(self: Arc<Self>) {
        if !self.listed.swap(true, Ordering::AcqRel) {
            let readiness = Arc::clone(&self.readiness);
            readiness.woken.lock().unwrap_or_else(PoisonError::into_inner).push(self);
            readiness.engine.notify_one();
        }
    }
}

impl Readiness {
    /// A waker for `token`.
    pub(crate) fn waker(self: &Arc<Self>, token: Token) -> Waker {
        Waker::from(Arc::new(TokenWaker { token, listed: AtomicBool::new(false), readiness: Arc::clone(self) }))
    }

    /// Waits until a token is woken.
    pub(crate) async fn ready(&self) {
        self.engine.notified().await;
    }

    /// Moves the tokens that were woken into `tokens`.
    pub(crate) fn take(&self, tokens: &mut Vec<Token>, spare: &mut Vec<Arc<TokenWaker>>) {
        std::mem::swap(&mut *self.woken.lock().unwrap_or_else(PoisonError::into_inner), spare);
        for waker in spare.drain(..) {
            // From here on it may be woken again: what is read after this is seen.
            waker.listed.store(false, Ordering::Release);
            tokens.push(waker.token);
        }
    }
}
