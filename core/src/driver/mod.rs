//! The generic driver: moves bytes between a [`Shell`]'s streams and the [`Node`]. All of the protocol that touches I/O, once.
//!
//! The shell calls [`Driver::service_link`] and [`Driver::service_conversation`] for streams that may have become ready, the
//! `handle_*` methods for what it was asked to do, and after any number of those [`Driver::drain`]; then it waits, at most until
//! [`Driver::poll_timeout`]. Work within one call is bounded; what is left over is said by [`More`].

mod link;
mod outside;
#[cfg(test)]
mod tests;

use core::net::SocketAddr;

use crate::circuit::LinkId;
use crate::crypto::onion::{HopKeys, Onion, OnionRejected, Peeled};
use crate::io::Shell;
use crate::node::{ConversationId, LinkWish, Node, OpenRefused, Opening, Plan};
use crate::relay::onions::OnionIndex;
use crate::time::Instant;
use crate::wire::UnixTime;
use crate::wire::descriptor::RSA_LEN;

pub use link::{LINK_BUFFER_MIN, LinkEnd, LinkPlace};
pub use outside::OutsidePlace;

/// Rounds of polling in one [`Driver::drain`].
const ROUNDS: usize = 16;

/// Whether a call left something undone: call again soon, after giving others their turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum More {
    /// Nothing to do until something happens.
    No,
    /// The bound on work in one call was reached.
    Yes,
}

/// What a driver keeps besides the node's own memory.
pub struct Places<'m, 'b, S: Shell> {
    /// One for each of the node's links.
    pub links: &'m mut [LinkPlace<'b, S>],
    /// One for each of the node's circuits.
    pub outsides: &'m mut [OutsidePlace<S>],
    /// Bytes on their way between conversations and cells; 64 KiB is enough for any, 490 the least.
    pub scratch: &'m mut [u8],
}

/// A node with its streams.
pub struct Driver<'m, 'b, S: Shell> {
    node: Node<'m>,
    links: &'m mut [LinkPlace<'b, S>],
    outsides: &'m mut [OutsidePlace<S>],
    scratch: &'m mut [u8],
    /// When links were last looked at for stalls.
    stall_check: Instant,
}

impl<'m, 'b, S: Shell> Driver<'m, 'b, S> {
    /// A driver for `node`.
    #[must_use]
    pub fn new(node: Node<'m>, places: Places<'m, 'b, S>) -> Self {
        let Places { links, outsides, scratch } = places;
        Self { node, links, outsides, scratch, stall_check: Instant::default() }
    }

    /// The node.
    #[must_use]
    pub const fn node(&self) -> &Node<'m> {
        &self.node
    }

    /// The node, for what concerns no stream (rotation, stopping).
    pub const fn node_mut(&mut self) -> &mut Node<'m> {
        &mut self.node
    }

    /// Opens a circuit of our own and attaches `stream`; the shell may attach it later with [`Driver::attach`].
    ///
    /// # Errors
    /// See [`OpenRefused`].
    pub fn open(&mut self, opening: &Opening<'_>, now: Instant) -> Result<ConversationId, OpenRefused> {
        let name = self.node.open(opening, now)?;
        self.claim(name, None);
        Ok(name)
    }

    /// The same, the onion built in place: [`Node::open_in_place`].
    ///
    /// # Errors
    /// See [`OpenRefused`].
    pub fn open_in_place<K: AsRef<[HopKeys]>>(
        &mut self,
        plan: &Plan<'_>,
        build: impl FnOnce(&mut Onion) -> Option<K>,
        now: Instant,
    ) -> Result<ConversationId, OpenRefused> {
        let name = self.node.open_in_place(plan, build, now)?;
        self.claim(name, None);
        Ok(name)
    }

    /// Wants a link to `address`, to be met by `node` if that is known; the shell hears of it through [`Shell::handle_descriptor`] or
    /// [`Shell::handle_link_end`]. `None` if there is no place for it.
    pub fn contact(&mut self, address: SocketAddr, node: Option<crate::wire::NodeId>, now: Instant) -> Option<LinkId> {
        self.node.connect_link(address, node, now)
    }

    /// An onion given to [`Shell::peel`] was opened elsewhere; `next` is the onion for the next hop.
    pub fn handle_peeled(
        &mut self,
        job: OnionIndex,
        peeled: Result<Peeled, OnionRejected>,
        next: &Onion,
        now: Instant,
    ) {
        if let Some(place) = self.node.job_onion(job) {
            *place = *next;
        }
        self.node.handle_peeled(job, peeled, now);
    }

    /// A statement given to [`Shell::sign`] was signed elsewhere.
    pub fn handle_signed(&mut self, name: ConversationId, time: UnixTime, signature: &[u8; RSA_LEN], now: Instant) {
        self.node.handle_signed(name, time, signature, now);
    }

    /// Does everything that has become possible, for all links and conversations.
    pub fn drain(&mut self, shell: &mut S, now: Instant) -> More {
        for _ in 0..ROUNDS {
            let mut idle = true;
            for _ in 0..self.outsides.len() {
                let Some(name) = self.node.poll_conversation() else { break };
                idle = false;
                self.service_conversation(shell, name, now);
            }
            while let Some((job, onion)) = self.node.poll_job() {
                idle = false;
                if let Some(peeled) = shell.peel(job, onion) {
                    self.node.handle_peeled(job, peeled, now);
                }
            }
            // No more than one turn each: a link that asks again at once has to wait for the others.
            for _ in 0..self.links.len() {
                let Some((link, wish)) = self.node.poll_link() else { break };
                idle = false;
                match wish {
                    LinkWish::Connect { address, node } => self.begin_connect(shell, link, address, node, now),
                    LinkWish::Send => self.handle_wish(shell, link, now),
                    LinkWish::Close => self.close_link(shell, link, LinkEnd::Idle, now),
                }
            }
            if idle {
                return More::No;
            }
        }
        More::Yes
    }

    /// When [`Driver::handle_timeout`] must be called at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.node.poll_timeout()
    }

    /// Ends what has waited too long.
    pub fn handle_timeout(&mut self, shell: &mut S, now: Instant) {
        self.node.handle_timeout(now);
        self.close_stalled_links(shell, now);
    }
}
