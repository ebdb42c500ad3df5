//! At an exit: resolve a target and connect to it, under the exit policy.

use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use bulbil_core::node::ConversationId;
use bulbil_core::time::Instant;
use bulbil_core::wire::{EndReason, Host, Name, Policy, Target, Verdict};
use embedded_io::ErrorKind;
use smoltcp::socket::tcp::State;

use crate::net::{NAME_ADDRESSES, Net, Query, SocketIndex};

/// How long a name may take to be resolved, in each family of addresses.
const RESOLVE: Duration = Duration::from_secs(10);
/// How long one address may take to answer.
const CONNECT: Duration = Duration::from_secs(15);

/// How far a target is reached.
#[expect(clippy::large_enum_variant, reason = "without an allocator the name has to lie in place")]
enum Stage {
    /// Its name is being resolved, to addresses of the second family if the first had none.
    Resolving { query: Query, name: Name, v6: bool },
    /// One of its addresses is being connected to.
    Connecting { socket: SocketIndex, address: SocketAddr },
}

/// A target that is being reached.
pub(crate) struct Dial {
    conversation: ConversationId,
    port: u16,
    stage: Stage,
    deadline: Instant,
    /// Addresses that are still to be tried.
    addresses: heapless::Vec<IpAddr, NAME_ADDRESSES>,
}

/// What came of a target.
pub(crate) type Reached = (ConversationId, Result<(SocketIndex, SocketAddr), EndReason>);

/// The targets that are being reached.
pub(crate) struct Dials {
    places: &'static mut [Option<Dial>],
}

impl Dials {
    pub(crate) const fn new(places: &'static mut [Option<Dial>]) -> Self {
        Self { places }
    }

    /// Begins to reach `target`.
    ///
    /// # Errors
    /// What the client is told: busy if all places are taken.
    pub(crate) fn begin(
        &mut self,
        net: &mut Net,
        policy: &Policy,
        conversation: ConversationId,
        target: &Target,
        now: Instant,
    ) -> Result<(), EndReason> {
        let place = self.places.iter_mut().find(|place| place.is_none()).ok_or(EndReason::Busy)?;
        let dial = match target {
            Target::Service(_) => return Err(EndReason::NoService),
            Target::Tcp(Host::Ip(ip), port) => {
                let addresses = heapless::Vec::from_array([*ip]);
                connect_next(net, policy, conversation, *port, addresses, now)?
            }
            Target::Tcp(Host::Name(name), port) => {
                let v6 = !net.has_family(false);
                let query = net.resolve(name.as_str(), v6)?;
                Dial {
                    conversation,
                    port: *port,
                    stage: Stage::Resolving { query, name: name.clone(), v6 },
                    deadline: now.after(RESOLVE),
                    addresses: heapless::Vec::new(),
                }
            }
        };
        *place = Some(dial);
        Ok(())
    }

    /// The next target that has been reached, or cannot be; `wanted` says whether a conversation is still there.
    pub(crate) fn poll(
        &mut self,
        net: &mut Net,
        policy: &Policy,
        wanted: impl Fn(ConversationId) -> bool,
        now: Instant,
    ) -> Option<Reached> {
        for place in self.places.iter_mut() {
            let Some(dial) = place else { continue };
            let conversation = dial.conversation;
            if !wanted(conversation) {
                dial.give_up(net);
                *place = None;
                continue;
            }
            match dial.poll(net, policy, now) {
                Progress::Waiting => {}
                Progress::Another(next) => *dial = next,
                Progress::Over(reached) => {
                    *place = None;
                    return Some((conversation, reached));
                }
            }
        }
        None
    }

    /// When [`Dials::poll`] must be called at the latest.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.places.iter().flatten().map(|dial| dial.deadline).min()
    }

    /// Targets that are being reached.
    pub(crate) fn len(&self) -> usize {
        self.places.iter().flatten().count()
    }
}

#[expect(clippy::large_enum_variant, reason = "lives for a moment on the stack")]
enum Progress {
    Waiting,
    Another(Dial),
    Over(Result<(SocketIndex, SocketAddr), EndReason>),
}

impl Progress {
    fn of(next: Result<Dial, EndReason>) -> Self {
        next.map_or_else(|reason| Self::Over(Err(reason)), Self::Another)
    }
}

impl Dial {
    fn give_up(&self, net: &mut Net) {
        match self.stage {
            Stage::Resolving { query, .. } => net.cancel(query),
            Stage::Connecting { socket, .. } => net.let_go(socket),
        }
    }

    fn poll(&mut self, net: &mut Net, policy: &Policy, now: Instant) -> Progress {
        let late = now >= self.deadline;
        match &self.stage {
            Stage::Resolving { query, name, v6 } => match net.poll_resolved(*query) {
                None if !late => Progress::Waiting,
                None => {
                    net.cancel(*query);
                    Progress::Over(Err(EndReason::TimedOut))
                }
                Some(addresses) if !addresses.is_empty() => {
                    Progress::of(connect_next(net, policy, self.conversation, self.port, addresses, now))
                }
                Some(_) if !v6 && net.has_family(true) => {
                    Progress::of(net.resolve(name.as_str(), true).map(|query| Self {
                        conversation: self.conversation,
                        port: self.port,
                        stage: Stage::Resolving { query, name: name.clone(), v6: true },
                        deadline: now.after(RESOLVE),
                        addresses: heapless::Vec::new(),
                    }))
                }
                Some(_) => Progress::Over(Err(EndReason::NotResolved)),
            },
            &Stage::Connecting { socket, address } => {
                let outcome = match net.tcp(socket).state() {
                    State::SynSent | State::SynReceived if !late => return Progress::Waiting,
                    State::SynSent | State::SynReceived => EndReason::TimedOut,
                    State::Closed => EndReason::Refused,
                    _ => return Progress::Over(Ok((socket, address))),
                };
                net.let_go(socket);
                if self.addresses.is_empty() {
                    return Progress::Over(Err(outcome));
                }
                let left = self.addresses.clone();
                Progress::of(connect_next(net, policy, self.conversation, self.port, left, now))
            }
        }
    }
}

/// Begins to connect to the first address that the policy allows.
fn connect_next(
    net: &mut Net,
    policy: &Policy,
    conversation: ConversationId,
    port: u16,
    mut addresses: heapless::Vec<IpAddr, NAME_ADDRESSES>,
    now: Instant,
) -> Result<Dial, EndReason> {
    let mut reason = EndReason::Forbidden;
    while !addresses.is_empty() {
        let address = SocketAddr::new(addresses.remove(0), port);
        // What the owner keeps from the outside must not be reached through the node itself.
        if policy.decide(address) != Verdict::Accept || net.is_own(address.ip()) {
            continue;
        }
        match net.connect_target(conversation, address) {
            Ok(socket) => {
                let stage = Stage::Connecting { socket, address };
                return Ok(Dial { conversation, port, stage, deadline: now.after(CONNECT), addresses });
            }
            Err(ErrorKind::OutOfMemory) => return Err(EndReason::Busy),
            Err(_) => reason = EndReason::Unreachable,
        }
    }
    Err(reason)
}
